// blip_fast._C: what was built and what this CPU can do. The operations are in libblip_fast.so, free of Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <vector>

namespace py = pybind11;

namespace {

std::map<std::string, std::string> build_info() {
  return {
      {"compiler", BLIP_FAST_COMPILER},     {"flags", BLIP_FAST_FLAGS},
      {"torch", BLIP_FAST_TORCH_VERSION},   {"cuda", BLIP_FAST_CUDA_VERSION},
      {"cuda_archs", BLIP_FAST_CUDA_ARCHS}, {"multiversioning", BLIP_FAST_MULTIVERSIONING},
      {"version", BLIP_FAST_VERSION},
  };
}

std::vector<std::string> cpu_features() {
  std::vector<std::string> found;
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
#define BLIP_FAST_FEATURE(name) \
  if (__builtin_cpu_supports(name)) found.emplace_back(name)
  BLIP_FAST_FEATURE("avx");
  BLIP_FAST_FEATURE("avx2");
  BLIP_FAST_FEATURE("fma");
  BLIP_FAST_FEATURE("avx512f");
  BLIP_FAST_FEATURE("avx512bw");
  BLIP_FAST_FEATURE("avx512vl");
  BLIP_FAST_FEATURE("avx512vnni");
#undef BLIP_FAST_FEATURE
#endif
  return found;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build information and CPU features.";
  m.def("build_info", &build_info, "Compiler, flags, torch and CUDA versions, CUDA architectures.");
  m.def("cpu_features", &cpu_features, "Vector extensions of this CPU.");
}
