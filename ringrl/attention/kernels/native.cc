// The CPU kernel of one device's attention step, called by XLA: see native.py for arguments and results.

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>

#include "native_backward.h"
#include "native_cache.h"
#include "native_forward.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace ringrl {
namespace {

// Of the pool's threads, one device's part: devices that share it compute at the same time.
int64_t threads_of(const ffi::ThreadPool& pool, int64_t sharers) {
  return std::max<int64_t>(pool.num_threads() / sharers, 1);
}

int64_t clamp(int64_t x, int64_t highest) { return std::clamp<int64_t>(x, 0, std::max<int64_t>(highest, 0)); }

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

// A few queries wait for memory, a prompt's many for matrix products.
template <class K>
void attend_cache(ffi::ThreadPool& pool, const Shape& shape, const float* q, Tokens q_tokens, const CacheLayer<K>& cache,
                  Floats& out, Floats& lse, int64_t threads) {
  constexpr int64_t kFewRows = 16;
  if (shape.rows() > kFewRows) {
    Forward<float, K> work(shape, q, cache.k, cache.v, q_tokens, cache.tokens, out->typed_data(),
                          lse->typed_data(), threads);
    work.lengths = cache.filled;
    work.k_scale = cache.k_scale;
    work.v_scale = cache.v_scale;
    if (work.items() >= threads) return run_all(pool, threads, work.items(), [&](int64_t i) { work.run(i); });
  }
  CacheAttention<K> work(shape, q, q_tokens, cache, out->typed_data(), lse->typed_data(), threads);
  run_all(pool, work.workers, work.items(), [&](int64_t i) { work.run(i); });
}

ffi::Error attend(ffi::ThreadPool pool, FloatArray q, ffi::AnyBuffer k, ffi::AnyBuffer v, FloatArray k_scale,
                  FloatArray v_scale, Ids layer, Ids q_positions, Ids q_segments, Ids positions, Ids segments,
                  Ids filled, Floats out, Floats lse, float scale, int64_t sharers) {
  const auto of_q = q.dimensions(), of_k = k.dimensions();
  const Shape shape{of_q[0], of_q[1], of_k[2], of_q[2], of_k[3] / of_q[3], of_q[3], 1, 1, scale};
  const int64_t before = clamp(layer.typed_data()[0], of_k[0] - 1) * shape.batch * shape.keys * shape.kv_heads;
  const bool scaled = k_scale.element_count() > 0;
  const auto run = [&](auto number) {
    using K = decltype(number);
    const CacheLayer<K> cache{data_of<K>(k) + before * shape.dim,
                              data_of<K>(v) + before * shape.dim,
                              scaled ? k_scale.typed_data() + before : nullptr,
                              scaled ? v_scale.typed_data() + before : nullptr,
                              tokens_of(positions, segments),
                              filled.typed_data()};
    attend_cache(pool, shape, q.typed_data(), tokens_of(q_positions, q_segments), cache, out, lse,
                 threads_of(pool, sharers));
  };
  if (k.element_type() == ffi::F32) run(float());
  if (k.element_type() == ffi::BF16) run(Bfloat16());
  if (k.element_type() == ffi::S8) run(int8_t());
  return ffi::Error::Success();
}

// Copies tokens of all rows, [outer, size] of `chunk` bytes each, to slots of [outer, slots]; `outer` is rows, or rows
// and key heads; in place where XLA lets it.
void put(const ffi::AnyBuffer& from, const ffi::AnyBuffer& whole, ffi::Result<ffi::AnyBuffer>& to, int64_t layer,
         const Ids& at, int64_t outer, int64_t size, int64_t slots) {
  if (to->untyped_data() != whole.untyped_data()) std::memcpy(to->untyped_data(), whole.untyped_data(), whole.size_bytes());
  if (from.element_count() == 0) return;
  const int64_t chunk = from.size_bytes() / (outer * size), rows = at.element_count();
  for (int64_t i = 0; i < outer; ++i) {
    const int64_t slot = clamp(at.typed_data()[i / (outer / rows)], slots - size);
    std::memcpy(static_cast<char*>(to->untyped_data()) + ((layer * outer + i) * slots + slot) * chunk,
                static_cast<const char*>(from.untyped_data()) + i * size * chunk, size * chunk);
  }
}

ffi::Error write(ffi::AnyBuffer k, ffi::AnyBuffer v, ffi::AnyBuffer k_scale, ffi::AnyBuffer v_scale,
                 ffi::AnyBuffer k_new, ffi::AnyBuffer v_new, ffi::AnyBuffer k_scale_new, ffi::AnyBuffer v_scale_new,
                 Ids layer, Ids at, ffi::Result<ffi::AnyBuffer> k_out, ffi::Result<ffi::AnyBuffer> v_out,
                 ffi::Result<ffi::AnyBuffer> k_scale_out, ffi::Result<ffi::AnyBuffer> v_scale_out) {
  const auto of_k = k.dimensions(), of_new = k_new.dimensions(), of_scales = k_scale_new.dimensions();
  const int64_t i = clamp(layer.typed_data()[0], of_k[0] - 1), rows = of_k[1], slots = of_k[2], size = of_new[1];
  const int64_t heads = of_scales[0] * of_scales[1];
  put(k_new, k, k_out, i, at, rows, size, slots);
  put(v_new, v, v_out, i, at, rows, size, slots);
  put(k_scale_new, k_scale, k_scale_out, i, at, heads, size, slots);
  put(v_scale_new, v_scale, v_scale_out, i, at, heads, size, slots);
  return ffi::Error::Success();
}

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

XLA_FFI_DEFINE_HANDLER_SYMBOL(RingrlAttendCache, ringrl::attend,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ringrl::FloatArray>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ringrl::FloatArray>()
                                  .Arg<ringrl::FloatArray>()
                                  .Arg<ringrl::Ids>()
                                  .Arg<ringrl::Ids>()
                                  .Arg<ringrl::Ids>()
                                  .Arg<ringrl::Ids>()
                                  .Arg<ringrl::Ids>()
                                  .Arg<ringrl::Ids>()
                                  .Ret<ringrl::FloatArray>()
                                  .Ret<ringrl::FloatArray>()
                                  .Attr<float>("scale")
                                  .Attr<int64_t>("sharers"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(RingrlWriteCache, ringrl::write,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ringrl::Ids>()
                                  .Arg<ringrl::Ids>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());
