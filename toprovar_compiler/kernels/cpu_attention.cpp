// Flash Attention Entropy for CPUs: attention and the entropy of its rows in one pass over the keys, float32.
//
// Per query row: m, the running maximum of the logits; l = sum 2^(s - m); e = sum 2^(s - m) (s - m). A larger
// maximum m' turns them into c l and c (e + (m - m') l) with c = 2^(m - m'); the entropy is ln 2 (log2 l - e / l).
// Logits are in base 2: the queries are multiplied by scale * log2(e) when they are packed. Masked logits are
// -inf; m starts at a large finite negative number, so that -inf - (-inf) cannot arise.
//
// Vectors are the compiler's own (GCC, Clang), as wide as the instruction set that it compiles for.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
// The products are most of the work: they need fused multiply-adds, which the caller's flags switch off.
#if defined(__clang__)
#pragma clang fp contract(fast)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=fast")
#endif

namespace {

// Accumulators of a micro kernel: ROWS x 2 vectors, which with operands must fit the vector registers.
#if defined(__AVX512F__)
constexpr int WIDTH = 16, ROWS = 8;
#elif defined(__AVX2__)
constexpr int WIDTH = 8, ROWS = 4;
#else
constexpr int WIDTH = 4, ROWS = 8;
#endif
constexpr int PAIR = 2 * WIDTH;
constexpr int QUERIES = 32;  // rows of a block
constexpr int KEYS = 256;    // keys of a tile; its logits, QUERIES x KEYS, stay in the first-level cache
static_assert(QUERIES % ROWS == 0 && KEYS % PAIR == 0, "blocks are made of whole micro kernels");
constexpr float LOWEST = -1e30f;         // "no key yet": finite, also after a difference
constexpr float UNDERFLOW_AT = -127.0f;  // 2^x is 0 here and below
constexpr float LN_2 = 0.69314718055994531f;
constexpr double LOG2_E = 1.4426950408889634;
constexpr std::size_t ALIGNMENT = 64;
typedef float Vec __attribute__((vector_size(WIDTH * 4)));
typedef float Loose __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
typedef std::int32_t Ints __attribute__((vector_size(WIDTH * 4)));

inline Vec load(const float* at) { return *reinterpret_cast<const Loose*>(at); }
inline void store(float* at, Vec x) { *reinterpret_cast<Loose*>(at) = x; }
inline Vec all(float x) { return x - Vec{}; }

// Over all lanes, in halves: a chain of lanes would wait for each.
template <typename Join> inline float reduce(Vec x, Join join) {
  float lanes[WIDTH];
  std::memcpy(lanes, &x, sizeof x);
  for (int half = WIDTH / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] = join(lanes[i], lanes[i + half]);
  return lanes[0];
}

inline float sum(Vec x) { return reduce(x, [](float a, float b) { return a + b; }); }
inline float largest(Vec x) { return reduce(x, [](float a, float b) { return a > b ? a : b; }); }

// 2^x for UNDERFLOW_AT <= x <= 0 or NaN, to about one unit in the last place; 0 at UNDERFLOW_AT.
inline Vec power(Vec x) {
  const Vec magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  const Vec whole = (x + magic) - magic;
  const Vec f = x - whole;
  Vec p = all(1.5252733804059841e-5f);  // ln(2)^k / k!, k = 7 .. 0
  p = 1.5403530393381609e-4f + f * p;
  p = 1.3333558146428443e-3f + f * p;
  p = 9.6181291076284772e-3f + f * p;
  p = 5.5504108664821580e-2f + f * p;
  p = 2.4022650695910071e-1f + f * p;
  p = 6.9314718055994531e-1f + f * p;
  p = 1.0f + f * p;
  const Ints exponent = (__builtin_convertvector(whole, Ints) + 127) << 23;
  Vec factor;
  std::memcpy(&factor, &exponent, sizeof factor);
  return p * factor;
}

struct Call {
  std::int64_t batch, heads, kv_heads, queries, keys, size, value_size, threads;
  std::int64_t q[4], k[4], v[4], bias[4];  // strides, of the bias over [B, H, Nq, Nk]
  std::int64_t bias_kind;                  // 0 none, 1 bool (true attends), 2 float32
};

struct Operands {
  const float *q, *k, *v;
  const void* bias;
  float *out, *entropy;  // [B, Nq, H, Dv] and [B, H, Nq], contiguous
};

std::int64_t padded(std::int64_t n, int to) { return (n + to - 1) / to * to; }

struct Freed { void operator()(float* at) const { std::free(at); } };
using Buffer = std::unique_ptr<float, Freed>;

Buffer buffer(std::int64_t floats) {
  const auto bytes = padded(floats * static_cast<std::int64_t>(sizeof(float)), ALIGNMENT);
  void* at = nullptr;
  if (posix_memalign(&at, ALIGNMENT, static_cast<std::size_t>(bytes)) != 0) throw std::bad_alloc();
  return Buffer(static_cast<float*>(at));
}

// One thread's work on one key head at a time.
class Worker {
 public:
  Worker(const Call& call, const Operands& at, float scale)
      : c(call), at(at), scale(scale), panels(padded(c.keys, PAIR)), wide(padded(c.value_size, WIDTH)),
        kt(buffer(panels * c.size)), vs(buffer(c.keys * wide)), qs(buffer(QUERIES * c.size)),
        logits(buffer(QUERIES * KEYS)), total(buffer(QUERIES * wide)) {}

  // Rows [first, last) of a key head: its queries, group after group.
  void rows(std::int64_t head, std::int64_t first, std::int64_t last) {
    if (head != packed) pack(head);
    for (std::int64_t row = first; row < last; row += QUERIES)
      block(row, static_cast<int>(std::min<std::int64_t>(QUERIES, last - row)));
  }

 private:
  // Keys as panels [Nk / PAIR][D][PAIR], zero behind the last key; values as [Nk][wide].
  void pack(std::int64_t head) {
    packed = head;
    const float* k = at.k + head / c.kv_heads * c.k[0] + head % c.kv_heads * c.k[1];
    const float* v = at.v + head / c.kv_heads * c.v[0] + head % c.kv_heads * c.v[1];
    for (std::int64_t p = 0; p < panels; p += PAIR)
      for (std::int64_t i = 0; i < PAIR; ++i)
        for (std::int64_t d = 0; d < c.size; ++d)  // read in order; what is written stays in the cache
          kt.get()[p * c.size + d * PAIR + i] = p + i < c.keys ? k[(p + i) * c.k[2] + d * c.k[3]] : 0.0f;
    for (std::int64_t n = 0; n < c.keys; ++n)
      for (std::int64_t d = 0; d < wide; ++d)
        vs.get()[n * wide + d] = d < c.value_size ? v[n * c.v[2] + d * c.v[3]] : 0.0f;
  }

  void block(std::int64_t row, int count) {
    const int filled = static_cast<int>(padded(count, ROWS));
    for (int r = 0; r < filled; ++r) {
      // Rows that only fill the last micro kernel repeat the last one, so that no garbage is computed with.
      const std::int64_t n = row + std::min(r, count - 1);
      const float* q = at.q + batch() * c.q[0] + query_head(n) * c.q[1] + n % c.queries * c.q[2];
      for (std::int64_t d = 0; d < c.size; ++d) qs.get()[r * c.size + d] = q[d * c.q[3]] * scale;
    }
    std::fill_n(maximum, QUERIES, LOWEST);
    std::fill_n(mass, QUERIES, Vec{});
    std::fill_n(energy, QUERIES, Vec{});
    std::fill_n(total.get(), filled * wide, 0.0f);
    for (std::int64_t key = 0; key < c.keys; key += KEYS) {
      const int here = static_cast<int>(std::min<std::int64_t>(KEYS, c.keys - key));
      products(key, here, filled);
      if (c.bias_kind != 0) add_bias(row, key, count, here);
      for (int r = 0; r < filled; ++r) soften(r, here);
      for (int r = 0; r < filled; r += ROWS) {
        std::int64_t d = 0;
        for (; d + PAIR <= wide; d += PAIR) gather<2>(r, key, here, d);
        if (d < wide) gather<1>(r, key, here, d);
      }
    }
    finish(row, count);
  }

  std::int64_t batch() const { return packed / c.kv_heads; }

  std::int64_t query_head(std::int64_t row) const {
    return packed % c.kv_heads * (c.heads / c.kv_heads) + row / c.queries;
  }

  // logits[r][0 .. here) = q_r . k, in base 2.
  void products(std::int64_t key, int here, int filled) {
    for (int r = 0; r < filled; r += ROWS)
      for (int n = 0; n < here; n += PAIR) {
        const float* panel = kt.get() + (key + n) * c.size;
        const float* q = qs.get() + r * c.size;
        Vec low[ROWS] = {}, high[ROWS] = {};
        for (std::int64_t d = 0; d < c.size; ++d) {
          const Vec one = load(panel + d * PAIR), two = load(panel + d * PAIR + WIDTH);
          for (int i = 0; i < ROWS; ++i) {
            const float x = q[i * c.size + d];
            low[i] += x * one;
            high[i] += x * two;
          }
        }
        for (int i = 0; i < ROWS; ++i) {
          store(logits.get() + (r + i) * KEYS + n, low[i]);
          store(logits.get() + (r + i) * KEYS + n + WIDTH, high[i]);
        }
      }
  }

  void add_bias(std::int64_t row, std::int64_t key, int count, int here) {
    for (int r = 0; r < count; ++r) {
      const std::int64_t n = row + r;
      const std::int64_t start =
          batch() * c.bias[0] + query_head(n) * c.bias[1] + n % c.queries * c.bias[2] + key * c.bias[3];
      float* s = logits.get() + r * KEYS;
      if (c.bias_kind == 1) {
        const auto* keep = static_cast<const std::uint8_t*>(at.bias) + start;
        for (int i = 0; i < here; ++i)
          if (!keep[i * c.bias[3]]) s[i] = -std::numeric_limits<float>::infinity();
      } else {
        const float* bias = static_cast<const float*>(at.bias) + start;
        for (int i = 0; i < here; ++i) s[i] += bias[i * c.bias[3]] * static_cast<float>(LOG2_E);
      }
    }
  }

  // Logits of one row become weights; its maximum, mass, energy and output are rescaled.
  void soften(int r, int here) {
    float* s = logits.get() + r * KEYS;
    const int width = static_cast<int>(padded(here, WIDTH));
    std::fill(s + here, s + width, -std::numeric_limits<float>::infinity());
    Vec most = all(LOWEST);
    for (int i = 0; i < width; i += WIDTH) {
      const Vec x = load(s + i);
      most = x > most ? x : most;  // drops a NaN, whose weight is NaN all the same
    }
    const float larger = std::max(maximum[r], largest(most));
    Vec weights = {}, terms = {};
    for (int i = 0; i < width; i += WIDTH) {
      const Vec shifted = load(s + i) - larger;
      // Where 2^x is 0 its factor must be finite; a comparison with NaN is false, so that a NaN stays.
      const Vec x = UNDERFLOW_AT > shifted ? all(UNDERFLOW_AT) : shifted;
      const Vec p = power(x);
      weights += p;
      terms += p * x;
      store(s + i, p);
    }
    if (larger > maximum[r]) {
      const float step = maximum[r] - larger, decay = std::exp2(step);
      energy[r] = decay * (energy[r] + step * mass[r]);
      mass[r] *= decay;
      for (std::int64_t d = 0; d < wide; ++d) total.get()[r * wide + d] *= decay;
      maximum[r] = larger;
    }
    energy[r] += terms;
    mass[r] += weights;
  }

  // total[r][d ..] += weights[r] . v, over N vectors of ROWS rows.
  template <int N> void gather(int r, std::int64_t key, int here, std::int64_t d) {
    Vec sums[ROWS][N];
    float* out = total.get() + r * wide + d;
    for (int i = 0; i < ROWS; ++i)
      for (int j = 0; j < N; ++j) sums[i][j] = load(out + i * wide + j * WIDTH);
    const float* v = vs.get() + key * wide + d;
    const float* p = logits.get() + r * KEYS;
    for (int n = 0; n < here; ++n, v += wide) {
      Vec x[N];
      for (int j = 0; j < N; ++j) x[j] = load(v + j * WIDTH);
      for (int i = 0; i < ROWS; ++i)
        for (int j = 0; j < N; ++j) sums[i][j] += p[i * KEYS + n] * x[j];
    }
    for (int i = 0; i < ROWS; ++i)
      for (int j = 0; j < N; ++j) store(out + i * wide + j * WIDTH, sums[i][j]);
  }

  void finish(std::int64_t row, int count) {
    const float most = std::log(static_cast<float>(c.keys));
    for (int r = 0; r < count; ++r) {
      const std::int64_t n = (row + r) % c.queries, head = query_head(row + r);
      float* out = at.out + ((batch() * c.queries + n) * c.heads + head) * c.value_size;
      const float l = sum(mass[r]), e = sum(energy[r]);
      const bool dead = maximum[r] <= LOWEST && l == l;
      for (std::int64_t d = 0; d < c.value_size; ++d)
        out[d] = dead ? 0.0f : total.get()[r * wide + d] / l;
      // Rounding must not leave the range; comparisons with NaN are false, so that a NaN stays.
      float h = LN_2 * (std::log2(l) - e / l);
      h = h < 0.0f ? 0.0f : h > most ? most : h;
      at.entropy[(batch() * c.heads + head) * c.queries + n] = dead ? 0.0f : h;
    }
  }

  const Call& c;
  const Operands& at;
  const float scale;
  const std::int64_t panels, wide;
  Buffer kt, vs, qs, logits, total;
  std::int64_t packed = -1;
  float maximum[QUERIES];
  Vec mass[QUERIES], energy[QUERIES];  // a lane for each key modulo WIDTH
};

}  // namespace
extern "C" void toprovar_attention_entropy(const Call* call, const Operands* at, double scale) {
  const Call& c = *call;
  const std::int64_t heads = c.batch * c.kv_heads, rows = c.heads / c.kv_heads * c.queries;
  // Where heads are few, their rows are shared among threads, which each pack the keys anew.
  const std::int64_t blocks = (rows + QUERIES - 1) / QUERIES;
  const std::int64_t parts = heads >= 4 * c.threads ? 1 : std::min(blocks, (4 * c.threads + heads - 1) / heads);
  const std::int64_t share = (blocks + parts - 1) / parts * QUERIES;
#pragma omp parallel num_threads(static_cast<int>(c.threads))
  {
    Worker worker(c, *at, static_cast<float>(scale * LOG2_E));
#pragma omp for schedule(static)
    for (std::int64_t task = 0; task < heads * parts; ++task) {
      const std::int64_t first = task % parts * share;
      if (first < rows) worker.rows(task / parts, first, std::min(rows, first + share));
    }
  }
}
