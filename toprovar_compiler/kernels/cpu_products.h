// The two matrix products of attention, Q K^T and P V, in float32 on vector units.

namespace {

constexpr int QUERIES = ROWS == 6 ? 48 : 32;  // rows of a block
static_assert(QUERIES % ROWS == 0 && QUERIES % WIDTH == 0, "blocks are whole micro kernels and whole vectors");
constexpr int KEYS = 256;    // keys of a tile
// Logits or weights from one row to the next: not a power of two, which would crowd a few sets of the cache.
constexpr int PITCH = KEYS + WIDTH;

// Holds the queries of a chunk of rows and one tile of keys and values, laid out as the products read them.
// Places in scratch memory are in floats and multiples of WIDTH.
template <typename T> class VectorProducts {
 public:
  using Element = T;
  static constexpr int ROW_STEP = ROWS;  // rows are computed so many at a time

  VectorProducts(std::int64_t size, std::int64_t value_size)
      : size(size), deep(padded(size, WIDTH)), wide(padded(value_size, WIDTH)), value_size(value_size) {}

  std::int64_t scratch(std::int64_t rows) const { return deep * (rows + KEYS + WIDTH) + KEYS * wide; }

  void bind(float* at, std::int64_t rows) {
    queries = at;
    keys = queries + rows * deep;
    staged = keys + KEYS * deep;
    copied = staged + WIDTH * deep;
  }

  void enter() const {}
  void leave() const {}

  // Elements a row of `accumulate`'s sums.
  std::int64_t row_size() const { return wide; }

  // Panels [rows / ROWS][D][ROWS].
  void set_query(std::int64_t r, const T* q, std::int64_t stride) {
    float* to = queries + r / ROWS * ROWS * deep + r % ROWS;
    for (std::int64_t d = 0; d < size; ++d) convert(q[d * stride], to[d * ROWS]);
  }

  // Panels [here / PAIR][D][PAIR], zero behind the last key.
  void set_keys(const T* k, const std::int64_t (&strides)[2], int here) {
    for (int n = 0; n < padded(here, PAIR); n += WIDTH) {
      const T* rows = k + n * strides[0];
      const float* from = in_place(rows, strides[1], size);
      std::int64_t pitch = strides[0];
      if (from == nullptr || here - n < WIDTH) {
        copy_rows(rows, strides, std::max(here - n, 0), WIDTH, size, staged, deep);
        from = staged;
        pitch = deep;
      }
      for (std::int64_t d = 0; d < deep; d += WIDTH)
        transpose(from + d, pitch, keys + n / PAIR * PAIR * deep + d * PAIR + n % PAIR, PAIR);
    }
  }

  void set_values(const T* v, const std::int64_t (&strides)[2], int here) {
    values = strides[0] == wide ? in_place(v, strides[1], value_size) : nullptr;
    if (values != nullptr) return;
    copy_rows(v, strides, here, here, value_size, copied, wide);
    values = copied;
  }

  // out[r][0 .. here) = q_(first + r) . k for `rows` rows, a multiple of ROW_STEP.
  void logits(std::int64_t first, int rows, int here, float* out) const {
    for (int n = 0; n < here; n += PAIR)
      for (int r = 0; r < rows; r += ROWS) {
        const float* panel = keys + n * deep;
        const float* q = queries + (first + r) * deep;
        Vec sums[ROWS][2] = {};
        for (std::int64_t d = 0; d < size; ++d) {
          const Vec low = load(panel + d * PAIR), high = load(panel + d * PAIR + WIDTH);
          for (int i = 0; i < ROWS; ++i) {
            const Vec x = all(q[d * ROWS + i]);
            sums[i][0] += x * low;
            sums[i][1] += x * high;
          }
        }
        for (int i = 0; i < ROWS; ++i) {
          store(out + (r + i) * PITCH + n, sums[i][0]);
          store(out + (r + i) * PITCH + n + WIDTH, sums[i][1]);
        }
      }
  }

  static void set_weights(float* row, int i, Vec p) { store(row + i, p); }

  // sums[r] += weights[r] . v for `rows` rows, a multiple of ROW_STEP.
  void accumulate(const float* weights, int rows, int here, float* sums) const {
    for (std::int64_t d = 0; d < wide; d += PAIR)
      for (int r = 0; r < rows; r += ROWS)
        if (d + PAIR <= wide)
          accumulate<2>(weights + r * PITCH, values + d, here, sums + r * wide + d);
        else
          accumulate<1>(weights + r * PITCH, values + d, here, sums + r * wide + d);
  }

 private:
  template <int N> void accumulate(const float* p, const float* v, int here, float* out) const {
    // A tile's sum is added as a whole: key by key, each would be rounded as the sum over all tiles is.
    Vec sums[ROWS][N] = {};
    for (int n = 0; n < here; ++n, v += wide) {
      Vec x[N];
      for (int j = 0; j < N; ++j) x[j] = load(v + j * WIDTH);
      for (int i = 0; i < ROWS; ++i) {
        const Vec weight = all(p[i * PITCH + n]);
        for (int j = 0; j < N; ++j) sums[i][j] += weight * x[j];
      }
    }
    for (int i = 0; i < ROWS; ++i)
      for (int j = 0; j < N; ++j) {
        float* to = out + i * wide + j * WIDTH;
        store(to, load(to) + sums[i][j]);
      }
  }

  // Rows of floats that need no conversion and no padding; null for others.
  static const float* in_place(const float* rows, std::int64_t stride, std::int64_t n) {
    return stride == 1 && n % WIDTH == 0 ? rows : nullptr;
  }
  static const float* in_place(const BFloat16*, std::int64_t, std::int64_t) { return nullptr; }

  const std::int64_t size, deep, wide, value_size;
  float *queries = nullptr, *keys = nullptr, *staged = nullptr, *copied = nullptr;
  const float* values = nullptr;
};

}  // namespace
