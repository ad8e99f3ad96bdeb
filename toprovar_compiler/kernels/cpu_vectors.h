// Vectors of floats as wide as the instruction set that is compiled for, in the compiler's own terms (GCC,
// Clang), and the few functions on them that attention needs.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

// A micro kernel keeps ROWS x 2 vectors of sums, which with its operands must fit the vector registers. With
// fewer rows than fit, GCC loads an operand anew for each row, and loads become what a product waits for.
#if defined(__AVX512F__)
constexpr int WIDTH = 16, ROWS = 8;
#elif defined(__AVX2__)
constexpr int WIDTH = 8, ROWS = 6;
#else
constexpr int WIDTH = 4, ROWS = 8;
#endif
constexpr int PAIR = 2 * WIDTH;

typedef float Vec __attribute__((vector_size(WIDTH * 4)));
typedef std::uint32_t Bits __attribute__((vector_size(WIDTH * 4)));
typedef std::uint16_t Shorts __attribute__((vector_size(WIDTH * 2)));

struct BFloat16 {
  std::uint16_t bits;
};

template <typename To, typename From> inline To cast(From x) {
  static_assert(sizeof(To) == sizeof(From), "a cast keeps all bits");
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

inline Vec all(float x) { return x - Vec{}; }

inline Vec load(const float* at) {
  Vec x;
  std::memcpy(&x, at, sizeof x);
  return x;
}

inline Vec load(const BFloat16* at) {
  Shorts x;
  std::memcpy(&x, at, sizeof x);
  return cast<Vec>(__builtin_convertvector(x, Bits) << 16);
}

inline void store(float* at, Vec x) { std::memcpy(at, &x, sizeof x); }

// Rounds to nearest, ties to even; a NaN stays one.
inline void store(BFloat16* at, Vec x) {
  const Bits bits = cast<Bits>(x), nan = cast<Bits>(x != x);
  const Bits rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const Shorts narrow = __builtin_convertvector(nan ? Bits{} + 0x7fc0 : rounded, Shorts);
  std::memcpy(at, &narrow, sizeof narrow);
}

inline float widen(BFloat16 x) { return cast<float>(static_cast<std::uint32_t>(x.bits) << 16); }

template <typename T> inline void convert(const T& from, T& to) { to = from; }
inline void convert(const BFloat16& from, float& to) { to = widen(from); }

// `n` elements, `stride` apart, to elements in a row.
template <typename From, typename To>
inline void copy_row(const From* from, std::int64_t stride, std::int64_t n, To* to) {
  std::int64_t d = 0;
  if constexpr (sizeof(From) == sizeof(To)) {
    if (stride == 1) d = std::copy_n(from, n, to) - to;
  } else {
    if (stride == 1)
      for (; d + WIDTH <= n; d += WIDTH) store(to + d, load(from + d));
  }
  for (; d < n; ++d) convert(from[d * stride], to[d]);
}

// `rows` rows of `n` elements, zero from row `filled` on, and each followed by zeros up to `pitch`.
template <typename From, typename To>
inline void copy_rows(const From* from, const std::int64_t (&strides)[2], std::int64_t filled,
                      std::int64_t rows, std::int64_t n, To* to, std::int64_t pitch) {
  for (std::int64_t r = 0; r < rows; ++r, to += pitch) {
    const std::int64_t end = r < filled ? n : 0;
    copy_row(from + (r < filled ? r * strides[0] : 0), strides[1], end, to);
    std::fill(to + end, to + pitch, To{});
  }
}

// a0 b0 a1 b1 .. of the lower or upper halves.
template <std::size_t FIRST, std::size_t... I> inline Vec zip(Vec a, Vec b, std::index_sequence<I...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, static_cast<int>(FIRST + I / 2 + I % 2 * WIDTH)...);
#else
  return __builtin_shuffle(a, b, Bits{static_cast<std::uint32_t>(FIRST + I / 2 + I % 2 * WIDTH)...});
#endif
}

// A square of WIDTH rows, `from_pitch` floats apart; columns go to rows `to_pitch` apart. Moves any 32 bits.
inline void transpose(const float* from, std::int64_t from_pitch, float* to, std::int64_t to_pitch) {
  constexpr auto lanes = std::make_index_sequence<WIDTH>();
  Vec x[WIDTH], y[WIDTH];
  for (int i = 0; i < WIDTH; ++i) x[i] = load(from + i * from_pitch);
  for (int step = 1; step < WIDTH; step *= 2) {
    for (int i = 0; i < WIDTH / 2; ++i) {
      y[2 * i] = zip<0>(x[i], x[i + WIDTH / 2], lanes);
      y[2 * i + 1] = zip<WIDTH / 2>(x[i], x[i + WIDTH / 2], lanes);
    }
    std::copy_n(y, WIDTH, x);
  }
  for (int i = 0; i < WIDTH; ++i) store(to + i * to_pitch, x[i]);
}

// The larger of each lane; the second where one is NaN.
inline Vec larger(Vec a, Vec b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

inline float sum(Vec x) {
  float total = 0.0f;
  for (int i = 0; i < WIDTH; ++i) total += x[i];
  return total;
}

constexpr float UNDERFLOW_AT = -127.0f;  // power() is 0 here

// 2^x for UNDERFLOW_AT <= x <= 1 or NaN, to about one unit in the last place; 0 at UNDERFLOW_AT.
inline Vec power(Vec x) {
  // Adding 1.5 * 2^23 rounds to a whole number, whose low bits with 127 added are a float's exponent.
  const Vec magic = all(12582912.0f + 127.0f);
  const Vec shifted = x + magic;
  const Vec f = x - (shifted - magic);
  Vec p = all(1.5353361959569156e-4f);  // minimax on [-1/2, 1/2], relative error 2e-9
  p = 1.3398875016719103e-3f + f * p;
  p = 9.6184369176626205e-3f + f * p;
  p = 5.5503323674201965e-2f + f * p;
  p = 2.4022647738456726e-1f + f * p;
  p = 6.9314718246459961e-1f + f * p;
  p = 1.0f + f * p;
  return p * cast<Vec>(cast<Bits>(shifted) << 23);
}

constexpr std::int64_t padded(std::int64_t n, int to) { return (n + to - 1) / to * to; }

}  // namespace
