// Macros that let one piece of arithmetic serve the CPU code and the CUDA kernels.
#pragma once

#if defined(__CUDACC__)
#define BLIP_FAST_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define BLIP_FAST_HOST_DEVICE inline __attribute__((always_inline))
#endif

// Function multiversioning: the loader picks AVX-512, AVX2 or portable code, so one wheel serves every x86-64.
#if defined(BLIP_FAST_HAVE_TARGET_CLONES) && !defined(__CUDACC__)
#define BLIP_FAST_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define BLIP_FAST_MULTIVERSION
#endif
