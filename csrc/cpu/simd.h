// Vector widths, and the choice among them at run time: code is a template over an Isa and is compiled for each.
//
// `target_clones` compiles one source for several machines, which is enough for loops that the compiler vectorises.
// Register tiles want another shape on each machine, hence this: `run_best<Body>(args...)` calls
// `Body::run<Isa>(args...)` with the widest Isa of this CPU. What `run` calls in its hot loops must be BLIP_FAST_INLINE
// and no lambda, so that it is compiled for that machine too.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

// Vectors are passed between functions that are always inlined: no call's ABI depends on them.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

#define BLIP_FAST_INLINE inline __attribute__((always_inline))

#if defined(__x86_64__) && defined(__GNUC__)
#define BLIP_FAST_X86
#define BLIP_FAST_TARGET_AVX512 __attribute__((target("arch=x86-64-v4")))
#define BLIP_FAST_TARGET_AVX2 __attribute__((target("arch=x86-64-v3")))
#endif

namespace blip_fast {

// W lanes of 32 bits; a register tile has up to C vectors side by side.
template <int W, int C>
struct Isa {
  static constexpr int kWidth = W;
  static constexpr int kColumns = C;
  typedef float Vector __attribute__((vector_size(4 * W), may_alias));
  typedef uint32_t Bits __attribute__((vector_size(4 * W), may_alias));
};

struct Avx512 : Isa<16, 4> {};  // 32 registers
struct Avx2 : Isa<8, 2> {};     // 16 registers
struct Portable : Isa<4, 2> {};

template <class Vector, class T>
BLIP_FAST_INLINE Vector load(const T* address) {
  Vector vector;
  memcpy(&vector, address, sizeof vector);
  return vector;
}

template <class Vector, class T>
BLIP_FAST_INLINE void store(T* address, const Vector& vector) {
  memcpy(address, &vector, sizeof vector);
}

template <int W>
struct Lanes {
  typedef float Vector __attribute__((vector_size(4 * W), may_alias));
};

// The sum of a vector's lanes: halves are added until four lanes are left.
template <int W>
BLIP_FAST_INLINE float sum_lanes(const typename Lanes<W>::Vector& v) {
  if constexpr (W == 4) {
    return (v[0] + v[2]) + (v[1] + v[3]);
  } else {
    typename Lanes<W / 2>::Vector halves[2];
    memcpy(halves, &v, sizeof v);
    return sum_lanes<W / 2>(halves[0] + halves[1]);
  }
}

#if defined(BLIP_FAST_X86)
template <class Body, class... Args>
BLIP_FAST_TARGET_AVX512 void run_avx512(const Args&... args) {
  Body::template run<Avx512>(args...);
}

template <class Body, class... Args>
BLIP_FAST_TARGET_AVX2 void run_avx2(const Args&... args) {
  Body::template run<Avx2>(args...);
}

// Whether torch's switch for its own kernels, ATEN_CPU_CAPABILITY (default, avx2 or avx512), forbids a capability.
inline bool forbids_avx512() {
  const char* const limit = std::getenv("ATEN_CPU_CAPABILITY");
  return limit != nullptr && (strcmp(limit, "default") == 0 || strcmp(limit, "avx2") == 0);
}

inline bool forbids_avx2() { return forbids_avx512() && strcmp(std::getenv("ATEN_CPU_CAPABILITY"), "default") == 0; }

inline bool has_avx2() {
  return !forbids_avx2() && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
}

inline bool has_avx512() {
  return has_avx2() && !forbids_avx512() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

template <class Body, class... Args>
void run_best(const Args&... args) {
#if defined(BLIP_FAST_X86)
  static const int level = has_avx512() ? 2 : has_avx2() ? 1 : 0;
  if (level == 2) return run_avx512<Body>(args...);
  if (level == 1) return run_avx2<Body>(args...);
#endif
  Body::template run<Portable>(args...);
}

}  // namespace blip_fast
