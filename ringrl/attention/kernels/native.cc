// The CPU kernel of one device's attention step, called by XLA: see native.py for arguments and results.

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>

#include "native_backward.h"
#include "native_forward.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace ringrl {
namespace {

// Of the pool's threads, one device's part: devices that share it compute at the same time.
int64_t threads_of(const ffi::ThreadPool& pool, int64_t sharers) {
  return std::max<int64_t>(pool.num_threads() / sharers, 1);
}

// Runs work(0) .. work(items - 1) on this thread and, as far as they come free, on the pool's. It waits only for items
// that a thread has begun, never for a task that is still queued: all threads of the pool may be waiting like this one.
template <class Work>
void run_all(ffi::ThreadPool& pool, int64_t threads, int64_t items, const Work& work) {
  struct Progress {
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::mutex mutex;
    std::condition_variable all_done;
  };
  auto progress = std::make_shared<Progress>();
  const auto help = [progress, items, &work] {
    int64_t mine = 0;
    for (int64_t i = progress->next++; i < items; i = progress->next++, ++mine) work(i);
    if (mine == 0) return;
    std::lock_guard<std::mutex> lock(progress->mutex);
    progress->done += mine;
    if (progress->done == items) progress->all_done.notify_all();
  };
  const int64_t helpers = std::min(threads, items) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(std::function<void()>(help));
  help();
  std::unique_lock<std::mutex> lock(progress->mutex);
  progress->all_done.wait(lock, [&] { return progress->done == items; });
}


Shape shape_of(const ffi::AnyBuffer& q, const ffi::AnyBuffer& k, int64_t q_chunks, int64_t k_chunks, float scale) {
  const auto queries = q.dimensions(), keys = k.dimensions();
  return {queries[0], queries[1], keys[1], queries[2], keys[2], queries[3], q_chunks, k_chunks, scale};
}

using Ids = ffi::Buffer<ffi::S32>;

Tokens tokens_of(const Ids& positions, const Ids& segments) {
  const auto dims = positions.dimensions();
  return {positions.typed_data(), segments.element_count() ? segments.typed_data() : nullptr,
          dims[0] == 1 ? 0 : dims[1], dims[1]};
}

template <class T>
const T* data_of(const ffi::AnyBuffer& x) {
  return static_cast<const T*>(x.untyped_data());
}

using Floats = ffi::Result<ffi::Buffer<ffi::F32>>;

template <class T>
void forward_as(ffi::ThreadPool& pool, const Shape& shape, const ffi::AnyBuffer& q, const ffi::AnyBuffer& k,
                const ffi::AnyBuffer& v, Tokens q_tokens, Tokens k_tokens, Floats& out, Floats& lse, int64_t threads) {
  const Forward<T> work(shape, data_of<T>(q), data_of<T>(k), data_of<T>(v), q_tokens, k_tokens, out->typed_data(),
                        lse->typed_data(), threads);
  run_all(pool, threads, work.items(), [&](int64_t i) { work.run(i); });
}

ffi::Error forward(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v, Ids q_positions,
                   Ids k_positions, Ids q_segments, Ids k_segments, Floats out, Floats lse, float scale,
                   int64_t q_chunks, int64_t k_chunks, int64_t sharers) {
  const Shape shape = shape_of(q, k, q_chunks, k_chunks, scale);
  const Tokens q_tokens = tokens_of(q_positions, q_segments), k_tokens = tokens_of(k_positions, k_segments);
  if (q.element_type() == ffi::F32) {
    forward_as<float>(pool, shape, q, k, v, q_tokens, k_tokens, out, lse, threads_of(pool, sharers));
  } else {
    forward_as<Bfloat16>(pool, shape, q, k, v, q_tokens, k_tokens, out, lse, threads_of(pool, sharers));
  }
  return ffi::Error::Success();
}

template <class T>
ffi::Error backward_as(ffi::ThreadPool& pool, const Shape& shape, const ffi::AnyBuffer& q, const ffi::AnyBuffer& d_out,
                       const float* lse, const float* delta, const ffi::AnyBuffer& k, const ffi::AnyBuffer& v,
                       Tokens q_tokens, Tokens k_tokens, Floats& dq, Floats& dk, Floats& dv, int64_t threads) {
  Backward<T> work(shape, data_of<T>(q), data_of<T>(d_out), lse, delta, data_of<T>(k), data_of<T>(v), q_tokens,
                   k_tokens, dq->typed_data(), dk->typed_data(), dv->typed_data(), threads);
  Scratch shares;
  try {
    if (work.parts > 1) work.shares = shares.reserve(work.parts * work.share_size());
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for the shares of dq");
  }
  run_all(pool, threads, work.items(), [&](int64_t i) { work.run(i); });
  run_all(pool, threads, work.sum_items(), [&](int64_t i) { work.sum(i); });
  return ffi::Error::Success();
}

ffi::Error backward(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer d_out, ffi::Buffer<ffi::F32> lse,
                    ffi::Buffer<ffi::F32> delta, ffi::AnyBuffer k, ffi::AnyBuffer v, Ids q_positions, Ids k_positions,
                    Ids q_segments, Ids k_segments, Floats dq, Floats dk, Floats dv, float scale, int64_t q_chunks,
                    int64_t k_chunks, int64_t sharers) {
  const Shape shape = shape_of(q, k, q_chunks, k_chunks, scale);
  const Tokens q_tokens = tokens_of(q_positions, q_segments), k_tokens = tokens_of(k_positions, k_segments);
  const auto as = q.element_type() == ffi::F32 ? backward_as<float> : backward_as<Bfloat16>;
  return as(pool, shape, q, d_out, lse.typed_data(), delta.typed_data(), k, v, q_tokens, k_tokens, dq, dk, dv,
            threads_of(pool, sharers));
}

// `x` as it is, in its own memory where XLA lets it; `token` has been computed by then.
ffi::Error after(ffi::AnyBuffer x, ffi::AnyBuffer token, ffi::Result<ffi::AnyBuffer> same) {
  if (same->untyped_data() != x.untyped_data()) std::memcpy(same->untyped_data(), x.untyped_data(), x.size_bytes());
  return ffi::Error::Success();
}

using FloatArray = ffi::Buffer<ffi::F32>;

}  // namespace
}  // namespace ringrl

XLA_FFI_DEFINE_HANDLER_SYMBOL(RingrlAfter, ringrl::after,
                              ffi::Ffi::Bind().Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(RingrlForward, ringrl::forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ringrl::Ids>()
                                  .Arg<ringrl::Ids>()
                                  .Arg<ringrl::Ids>()
                                  .Arg<ringrl::Ids>()
                                  .Ret<ringrl::FloatArray>()
                                  .Ret<ringrl::FloatArray>()
                                  .Attr<float>("scale")
                                  .Attr<int64_t>("q_chunks")
                                  .Attr<int64_t>("k_chunks")
                                  .Attr<int64_t>("sharers"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(RingrlBackward, ringrl::backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ringrl::FloatArray>()
                                  .Arg<ringrl::FloatArray>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ringrl::Ids>()
                                  .Arg<ringrl::Ids>()
                                  .Arg<ringrl::Ids>()
                                  .Arg<ringrl::Ids>()
                                  .Ret<ringrl::FloatArray>()
                                  .Ret<ringrl::FloatArray>()
                                  .Ret<ringrl::FloatArray>()
                                  .Attr<float>("scale")
                                  .Attr<int64_t>("q_chunks")
                                  .Attr<int64_t>("k_chunks")
                                  .Attr<int64_t>("sharers"));
