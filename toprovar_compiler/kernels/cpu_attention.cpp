// Flash Attention Entropy for CPUs: attention and the entropy of its rows in one pass over the keys.
//
// Per query row: m, the running maximum of the logits; l = sum 2^x and e = sum 2^x x with
// x = (s - m) scale log2(e). A larger maximum m' turns them into c l and c (e + y l) with
// y = (m - m') scale log2(e), c = 2^y; the entropy is ln 2 (log2 l - e / l). Masked logits are -inf; m
// starts at a large finite negative number, so that -inf - (-inf) cannot arise.
#include <omp.h>

#include "cpu_vectors.h"
#include "cpu_products.h"
#include "cpu_tiles.h"

extern "C" {

struct Call {
  std::int64_t batch, heads, kv_heads, queries, keys, size, value_size, threads;
  std::int64_t q[4], k[4], v[4], bias[4];  // strides, of the bias over [B, H, Nq, Nk]
  std::int64_t bias_kind;                  // 0 none, 1 bool (true attends), 2 float32
  std::int64_t bfloat16, tiles;            // q, k, v and out are bfloat16, else float32; use the tile unit
  double scale;                            // positive
};

struct Operands {
  const void *q, *k, *v, *bias;
  void* out;       // [B, Nq, H, Dv], contiguous
  float* entropy;  // [B, H, Nq], contiguous
  float* scratch;
};
}

namespace {

constexpr std::int64_t CHUNK = 16 * QUERIES;  // rows at most that one packed tile of keys serves
constexpr float LOWEST = -std::numeric_limits<float>::max() / 2;  // "no key yet"; logits up to it are masked
constexpr float VANISHED = -150.0f;                               // 2^x is 0 here, and finite times it too
constexpr float LN_2 = 0.69314718055994531f;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr int NO_BIAS = 0, BOOL_BIAS = 1;

// One thread's work: chunks of rows of one key head, which are its queries, group after group.
template <typename Products> class Worker {
 public:
  using T = typename Products::Element;

  Worker(const Call& call, const Operands& at, float* scratch)
      : c(call), at(at), products(c.size, c.value_size), wide(products.row_size()),
        factor(c.bias_kind == NO_BIAS ? static_cast<float>(c.scale) * LOG2_E : 1.0f), logits(scratch) {
    const std::int64_t most = most_rows(c);
    mass = logits + QUERIES * PITCH;
    energy = mass + most * WIDTH;
    maximum = energy + most * WIDTH;
    total = maximum + padded(most, WIDTH);
    products.bind(total + most * wide, most);
    products.enter();
  }

  ~Worker() { products.leave(); }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  static std::int64_t rows_of_head(const Call& c) { return c.heads / c.kv_heads * c.queries; }
  static std::int64_t most_rows(const Call& c) { return std::min(CHUNK, padded(rows_of_head(c), QUERIES)); }

  // Floats that a worker needs.
  static std::int64_t scratch(const Call& c) {
    const Products products(c.size, c.value_size);
    const std::int64_t rows = most_rows(c), statistics = rows * (2 * WIDTH + products.row_size()) + rows;
    return padded(QUERIES * PITCH + padded(statistics, WIDTH) + products.scratch(rows), 64);
  }

  // Rows [first, last) of a head, at most CHUNK of them.
  void chunk(std::int64_t key_head, std::int64_t first, std::int64_t last) {
    batch = key_head / c.kv_heads;
    head = key_head % c.kv_heads;
    row = first;
    count = static_cast<int>(last - first);
    start();
    const T* k = static_cast<const T*>(at.k) + batch * c.k[0] + head * c.k[1];
    const T* v = static_cast<const T*>(at.v) + batch * c.v[0] + head * c.v[1];
    for (std::int64_t key = 0; key < c.keys; key += KEYS) {
      const int here = static_cast<int>(std::min<std::int64_t>(KEYS, c.keys - key));
      products.set_keys(k + key * c.k[2], {c.k[2], c.k[3]}, here);
      products.set_values(v + key * c.v[2], {c.v[2], c.v[3]}, here);
      for (int r = 0; r < count; r += QUERIES) block(r, key, here);
    }
    for (int r = 0; r < count; ++r) finish(r);
  }

 private:
  void start() {
    const std::int64_t filled = padded(count, Products::ROW_STEP);
    for (std::int64_t r = 0; r < filled; ++r) {
      // Rows that only fill the last micro kernel repeat the last one, so that no garbage is computed with.
      const std::int64_t n = row + std::min<std::int64_t>(r, count - 1);
      const T* q = static_cast<const T*>(at.q) + batch * c.q[0] + query_head(n) * c.q[1];
      products.set_query(r, q + n % c.queries * c.q[2], c.q[3]);
    }
    std::fill_n(maximum, filled, LOWEST);
    std::fill_n(mass, filled * WIDTH, 0.0f);
    std::fill_n(energy, filled * WIDTH, 0.0f);
    std::fill_n(total, filled * wide, 0.0f);
  }

  // QUERIES rows from r on, or what is left of them, against the tile of keys.
  void block(int r, std::int64_t key, int here) {
    const int rows = static_cast<int>(std::min<std::int64_t>(QUERIES, padded(count - r, Products::ROW_STEP)));
    products.logits(r, rows, here, logits);
    for (int i = 0; i < rows; ++i) {
      float* s = logits + i * PITCH;
      if (c.bias_kind != NO_BIAS) add_bias(s, row + std::min(r + i, count - 1), key, here);
      std::fill(s + here, s + padded(here, PAIR), -std::numeric_limits<float>::infinity());
    }
    raise_maxima(r, rows, here);
    for (int i = 0; i < rows; ++i) weigh(logits + i * PITCH, r + i, here);
    products.accumulate(logits, rows, here, total + r * wide);
  }

  std::int64_t query_head(std::int64_t n) const { return head * (c.heads / c.kv_heads) + n / c.queries; }

  // Brings the logits to base 2 as well; `factor` is 1 then.
  void add_bias(float* s, std::int64_t n, std::int64_t key, int here) {
    const float scale = static_cast<float>(c.scale) * LOG2_E;
    const std::int64_t stride = c.bias[3];
    const std::int64_t start =
        batch * c.bias[0] + query_head(n) * c.bias[1] + n % c.queries * c.bias[2] + key * stride;
    if (c.bias_kind == BOOL_BIAS) {
      const auto* attends = static_cast<const std::uint8_t*>(at.bias) + start;
      for (int i = 0; i < here; ++i)
        s[i] = attends[i * stride] ? s[i] * scale : -std::numeric_limits<float>::infinity();
    } else {
      const float* bias = static_cast<const float*>(at.bias) + start;
      for (int i = 0; i < here; ++i) s[i] = s[i] * scale + bias[i * stride] * LOG2_E;
    }
  }

  void raise_maxima(int r, int rows, int here) {
    alignas(64) float peaks[QUERIES * WIDTH] = {}, square[WIDTH * WIDTH];
    for (int i = 0; i < rows; ++i) {
      // Two chains, for each step waits for the one before. A NaN is dropped; its weight is NaN all the same.
      Vec low = all(maximum[r + i]), high = low;
      for (const float *s = logits + i * PITCH, *end = s + here; s < end; s += PAIR) {
        low = larger(load(s), low);
        high = larger(load(s + WIDTH), high);
      }
      store(peaks + i * WIDTH, larger(low, high));
    }
    for (int i = 0; i < rows; i += WIDTH) {
      transpose(peaks + i * WIDTH, WIDTH, square, WIDTH);
      Vec top = load(square);
      for (int j = 1; j < WIDTH; ++j) top = larger(load(square + j * WIDTH), top);
      float tops[WIDTH];
      store(tops, top);
      for (int j = 0; j < std::min(WIDTH, rows - i); ++j)
        if (tops[j] > maximum[r + i + j]) raise_maximum(r + i + j, tops[j]);
    }
  }

  // Rescales what a row has summed.
  void raise_maximum(int r, float top) {
    const float y = std::max(VANISHED, (maximum[r] - top) * factor);
    const float decay = y == VANISHED ? 0.0f : std::exp2(y);
    float *l = mass + r * WIDTH, *e = energy + r * WIDTH, *o = total + r * wide;
    store(e, decay * (load(e) + y * load(l)));
    store(l, decay * load(l));
    for (std::int64_t d = 0; d < wide; d += WIDTH) store(o + d, decay * load(o + d));
    maximum[r] = top;
  }

  // Logits of a row become weights.
  void weigh(float* s, int r, int here) {
    const Vec top = all(maximum[r]), least = all(UNDERFLOW_AT);
    Vec l = load(mass + r * WIDTH), e = load(energy + r * WIDTH);
    for (int i = 0; i < padded(here, PAIR); i += WIDTH) {
      const Vec y = (load(s + i) - top) * factor;
      // Where 2^x is 0 its factor must be finite; a NaN stays.
      const Vec x = larger(least, y);
      const Vec p = power(x);
      l += p;
      e += p * x;
      Products::set_weights(s, i, p);
    }
    store(mass + r * WIDTH, l);
    store(energy + r * WIDTH, e);
  }

  void finish(int r) {
    const std::int64_t n = (row + r) % c.queries, query = query_head(row + r);
    T* out = static_cast<T*>(at.out) + ((batch * c.queries + n) * c.heads + query) * c.value_size;
    const float l = sum(load(mass + r * WIDTH)), e = sum(load(energy + r * WIDTH));
    const bool dead = maximum[r] <= LOWEST && l == l;
    const float share = 1.0f / l;
    for (std::int64_t d = 0; d < c.value_size; d += WIDTH) {
      const Vec x = dead ? Vec{} : load(total + r * wide + d) * share;
      if (d + WIDTH <= c.value_size) {
        store(out + d, x);
      } else {
        T lanes[WIDTH];
        store(lanes, x);
        std::copy_n(lanes, c.value_size - d, out + d);
      }
    }
    // Rounding must not leave the range; comparisons with NaN are false, so that a NaN stays.
    const float h = LN_2 * (std::log2(l) - e / l), most = std::log(static_cast<float>(c.keys));
    at.entropy[(batch * c.heads + query) * c.queries + n] = dead || h < 0.0f ? 0.0f : h > most ? most : h;
  }

  const Call& c;
  const Operands& at;
  Products products;
  const std::int64_t wide;
  const float factor;
  float *logits, *mass, *energy, *maximum, *total;  // mass, energy: a lane for each key modulo WIDTH
  std::int64_t batch = 0, head = 0, row = 0;
  int count = 0;
};

template <typename Products> void run(const Call& c, const Operands& at) {
  using Work = Worker<Products>;
  const std::int64_t rows = Work::rows_of_head(c), per_head = (rows + QUERIES - 1) / QUERIES;
  const std::int64_t blocks = c.batch * c.kv_heads * per_head;
  // Several parts a thread even out their work, but each packs its keys: not below four blocks for that.
  const std::int64_t parts = std::min(blocks, std::max(c.threads, std::min(4 * c.threads, blocks / 4)));
#pragma omp parallel num_threads(static_cast<int>(c.threads))
  {
    Work worker(c, at, at.scratch + omp_get_thread_num() * Work::scratch(c));
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t part = 0; part < parts; ++part) {
      const std::int64_t end = blocks * (part + 1) / parts;
      for (std::int64_t i = blocks * part / parts, next; i < end; i = next) {
        const std::int64_t first = i % per_head * QUERIES;
        next = std::min({end, i - i % per_head + per_head, i + CHUNK / QUERIES});
        worker.chunk(i / per_head, first, std::min(rows, first + (next - i) * QUERIES));
      }
    }
  }
}

// Calls `use` with a null pointer to the products that a call takes.
template <typename Use> auto choose(const Call& c, Use use) {
#ifdef TOPROVAR_TILES
  if (c.bfloat16 && c.tiles) return use(static_cast<TileProducts*>(nullptr));
#endif
  if (c.bfloat16) return use(static_cast<VectorProducts<BFloat16>*>(nullptr));
  return use(static_cast<VectorProducts<float>*>(nullptr));
}

}  // namespace

// What this was compiled for: floats a vector, and whether there is code for the tile unit.
extern "C" std::int64_t toprovar_attention_width() { return WIDTH; }
extern "C" std::int64_t toprovar_attention_tiles() {
#ifdef TOPROVAR_TILES
  return 1;
#else
  return 0;
#endif
}

// Floats of scratch memory that a call needs.
extern "C" std::int64_t toprovar_attention_scratch(const Call* call) {
  return choose(*call, [&](auto* kind) {
    return Worker<std::remove_pointer_t<decltype(kind)>>::scratch(*call) * call->threads;
  });
}

extern "C" void toprovar_attention_entropy(const Call* call, const Operands* at) {
  choose(*call, [&](auto* kind) { run<std::remove_pointer_t<decltype(kind)>>(*call, *at); });
}
