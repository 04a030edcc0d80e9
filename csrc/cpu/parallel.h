// Tasks shared out among torch's threads: one that is done takes the next, since tasks and cores differ in speed.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace blip_fast {

// f(task, state) for each task, in any order; each thread makes a state of its own.
template <class Make, class F>
void parallel_with(int64_t tasks, const Make& make, const F& f) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t, int64_t) {
    auto state = make();
    for (int64_t task = next++; task < tasks; task = next++) f(task, state);
  });
}

template <class F>
void parallel(int64_t tasks, const F& f) {
  parallel_with(tasks, [] { return nullptr; }, [&](int64_t task, std::nullptr_t) { f(task); });
}

}  // namespace blip_fast
