// The two matrix products of attention on a CPU's tile unit (AMX): bfloat16 operands, float32 sums.
//
// A tile is 16 rows of 64 bytes. The right operand of a product interleaves pairs of rows; it lies as the
// tiles that the products read, one after another.
#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512F__)
#define TOPROVAR_TILES 1

namespace {

// As VectorProducts.
class TileProducts {
 public:
  using Element = BFloat16;
  static constexpr int ROW_STEP = 16;

  TileProducts(std::int64_t size, std::int64_t value_size)
      : size(size), deep(padded(size, DEPTH)), wide(padded(value_size, SIDE)), value_size(value_size) {}

  std::int64_t scratch(std::int64_t rows) const {
    return (deep * (rows + KEYS + SIDE) + KEYS * wide + 2 * padded(wide, DEPTH)) / 2;
  }

  void bind(float* at, std::int64_t rows) {
    queries = reinterpret_cast<BFloat16*>(at);
    keys = queries + rows * deep;
    staged = keys + KEYS * deep;
    values = staged + std::max(SIDE * deep, 2 * padded(wide, DEPTH));
  }

  void enter() const {
    alignas(64) struct {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE};
    } shape;
    asm volatile("" ::"r"(&shape) : "memory");  // older compilers think that only its first bytes are read
    _tile_loadconfig(&shape);
  }

  void leave() const { _tile_release(); }

  std::int64_t row_size() const { return wide; }

  void set_query(std::int64_t r, const BFloat16* q, std::int64_t stride) {
    copy_rows(q, {0, stride}, 1, 1, size, queries + r * deep, deep);
  }

  // [here / 16][D / 32] tiles of 16 pairs of dimensions x 16 keys, zero behind the last key.
  void set_keys(const BFloat16* k, const std::int64_t (&strides)[2], int here) {
    for (int n = 0; n < padded(here, DEPTH); n += SIDE) {
      copy_rows(k + n * strides[0], strides, std::max(here - n, 0), SIDE, size, staged, deep);
      for (std::int64_t d = 0; d < deep; d += DEPTH)
        transpose(floats(staged + d), deep / 2, floats(keys + n * deep + d * SIDE), SIDE);
    }
  }

  // [Dv / 16][KEYS / 32] tiles of 16 pairs of keys x 16 elements, zero behind the last key.
  void set_values(const BFloat16* v, const std::int64_t (&strides)[2], int here) {
    for (int n = 0; n < padded(here, DEPTH); n += 2) {
      copy_rows(v + n * strides[0], strides, std::max(here - n, 0), 2, value_size, staged, wide);
      for (std::int64_t d = 0; d < wide; d += SIDE) {
        // The even key's element in the lower half of 32 bits; `load` has them in the upper.
        const Bits even = cast<Bits>(load(staged + d)) >> 16, odd = cast<Bits>(load(staged + wide + d));
        store(floats(values + d * KEYS + n * SIDE), cast<Vec>(even | odd));
      }
    }
  }

  void logits(std::int64_t first, int rows, int here, float* out) const {
    for (int n = 0; n < here; n += DEPTH)
      for (int r = 0; r < rows; r += 2 * SIDE) {
        const Side left = {queries + (first + r) * deep, deep}, right = {keys + n * deep, SIDE * deep};
        if (r + SIDE < rows)
          multiply<2, 2>(left, right, deep / DEPTH, out + r * PITCH + n, PITCH);
        else
          multiply<1, 2>(left, right, deep / DEPTH, out + r * PITCH + n, PITCH);
      }
  }

  // Weights lie as bfloat16 in the first half of their row of logits.
  static void set_weights(float* row, int i, Vec p) {
    const __m256bh narrow = _mm512_cvtneps_pbh(cast<__m512>(p));
    std::memcpy(reinterpret_cast<char*>(row) + 2 * i, &narrow, sizeof narrow);
  }

  void accumulate(const float* weights, int rows, int here, float* sums) const {
    const std::int64_t steps = padded(here, DEPTH) / DEPTH;
    for (std::int64_t d = 0; d < wide; d += 2 * SIDE)
      for (int r = 0; r < rows; r += 2 * SIDE) {
        const Side left = {reinterpret_cast<const BFloat16*>(weights + r * PITCH), 2 * PITCH};
        const Side right = {values + d * KEYS, SIDE * KEYS};
        float* out = sums + r * wide + d;
        if (r + SIDE < rows && d + SIDE < wide)
          add_product<2, 2>(left, right, steps, out);
        else if (r + SIDE < rows)
          add_product<2, 1>(left, right, steps, out);
        else if (d + SIDE < wide)
          add_product<1, 2>(left, right, steps, out);
        else
          add_product<1, 1>(left, right, steps, out);
      }
  }

 private:
  static constexpr int SIDE = 16, DEPTH = 32;

  // An operand of a product, and its elements from row to row, or from one column of tiles to the next.
  struct Side {
    const BFloat16* at;
    std::int64_t pitch;
  };

  static float* floats(BFloat16* at) { return reinterpret_cast<float*>(at); }

  // sums[16 M][16 N] += a b.
  template <int M, int N> void add_product(Side a, Side b, std::int64_t steps, float* sums) const {
    alignas(64) float product[2 * SIDE * 2 * SIDE];
    multiply<M, N>(a, b, steps, product, 2 * SIDE);
    for (int r = 0; r < M * SIDE; ++r, sums += wide)
      for (int d = 0; d < N * SIDE; d += WIDTH)
        store(sums + d, load(sums + d) + load(product + r * 2 * SIDE + d));
  }

  // out[16 M][16 N] = a[16 M][32 steps] b.
  template <int M, int N>
  static void multiply(Side a, Side b, std::int64_t steps, float* out, std::int64_t pitch) {
    static_assert(M <= 2 && N <= 2, "tiles are named by literals");
    asm volatile("" ::: "memory");  // older compilers do not know that tiles are loaded from memory
    _tile_zero(0);
    if constexpr (N > 1) _tile_zero(1);
    if constexpr (M > 1) _tile_zero(2);
    if constexpr (M > 1 && N > 1) _tile_zero(3);
    for (std::int64_t s = 0; s < steps; ++s, a.at += DEPTH, b.at += SIDE * DEPTH) {
      _tile_loadd(4, a.at, a.pitch * 2);
      _tile_loadd(6, b.at, DEPTH * 2);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (N > 1) {
        _tile_loadd(7, b.at + b.pitch, DEPTH * 2);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (M > 1) {
        _tile_loadd(5, a.at + SIDE * a.pitch, a.pitch * 2);
        _tile_dpbf16ps(2, 5, 6);
      }
      if constexpr (M > 1 && N > 1) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out, pitch * 4);
    if constexpr (N > 1) _tile_stored(1, out + SIDE, pitch * 4);
    if constexpr (M > 1) _tile_stored(2, out + SIDE * pitch, pitch * 4);
    if constexpr (M > 1 && N > 1) _tile_stored(3, out + SIDE * pitch + SIDE, pitch * 4);
  }

  const std::int64_t size, deep, wide, value_size;
  BFloat16 *queries = nullptr, *keys = nullptr, *staged = nullptr, *values = nullptr;
};

}  // namespace
#endif
