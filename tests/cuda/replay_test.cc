// SPDX-License-Identifier: Apache-2.0
#include "layer.h"

namespace block_sparse::cuda::test {
namespace {

/// Forward of a layer, asked for on a stream.
struct Call {
  Layer layer;
  DeviceLayer device;
  DeviceBuffer y;
  ForwardArgs args;

  Call(const LayerCase& c, std::uint64_t seed)
      : layer(c, seed),
        device(layer),
        y(bytes_of(c.tokens, device.ldy, c.dtype)),
        args(forward_args(layer, device, y.data())) {}
  void check() const {
    expect_close(y, layer.c.dtype, layer.forward(), layer.c.tokens, layer.c.out, layer.c.gap,
                 layer.c.in, Activation::none, DataType::f32);
  }
};

constexpr LayerCase kLayer{.out = 512,
                           .in = 512,
                           .block_height = 32,
                           .block_width = 32,
                           .density = 0.3,
                           .tokens = 600,
                           .spare_slots = 200};

TEST(Replay, AGraphFollowsThePatternChangedInPlace) {
  Call call(kLayer, 11);
  cudaStream_t stream = nullptr;
  BLOCK_SPARSE_CUDA_OK(cudaStreamCreate(&stream));
  cudaGraph_t graph = nullptr;
  BLOCK_SPARSE_CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  ASSERT_TRUE(forward(call.args, stream).ok());
  BLOCK_SPARSE_CUDA_OK(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t exec = nullptr;
  BLOCK_SPARSE_CUDA_OK(cudaGraphInstantiate(&exec, graph, 0));
  BLOCK_SPARSE_CUDA_OK(cudaGraphLaunch(exec, stream));
  BLOCK_SPARSE_CUDA_OK(cudaStreamSynchronize(stream));
  call.check();

  // Another pattern of another count in the same buffers.
  LayerCase denser = kLayer;
  denser.density = 0.5;
  denser.spare_slots = 0;
  Layer other(denser, 12);
  ASSERT_LE(other.ids.size(), call.layer.ids.size()) << "the test needs room in the slots";
  const auto upload = [](const DeviceBuffer& buffer, const auto& host) {
    ASSERT_EQ(cudaMemcpy(buffer.data(), host.data(), host.size() * sizeof(host[0]),
                         cudaMemcpyHostToDevice),
              cudaSuccess);
  };
  upload(call.device.crow, other.crow);
  upload(call.device.col, other.col);
  upload(call.device.ids, other.ids);
  upload(call.device.ccol, other.ccol);
  upload(call.device.values, encoded(other.values, other.c.dtype));
  upload(call.device.x, encoded(other.x, other.c.dtype));
  upload(call.device.bias, encoded(other.bias, other.c.dtype));
  ASSERT_TRUE(build_plan(call.device.pattern, call.device.plan.as<std::int32_t>(), stream).ok());
  BLOCK_SPARSE_CUDA_OK(cudaGraphLaunch(exec, stream));
  BLOCK_SPARSE_CUDA_OK(cudaStreamSynchronize(stream));
  call.layer = other;
  call.check();
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST(Replay, TwoStreamsAtOnce) {
  Call a(kLayer, 13);
  Call b(kLayer, 14);
  cudaStream_t streams[2];
  for (cudaStream_t& s : streams) BLOCK_SPARSE_CUDA_OK(cudaStreamCreate(&s));
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(forward(a.args, streams[0]).ok());
    ASSERT_TRUE(forward(b.args, streams[1]).ok());
  }
  BLOCK_SPARSE_CUDA_OK(cudaDeviceSynchronize());
  a.check();
  b.check();
  for (cudaStream_t s : streams) cudaStreamDestroy(s);
}

TEST(Replay, TheSameBitsEveryTime) {
  Call call(kLayer, 15);
  ASSERT_TRUE(forward(call.args, nullptr).ok());
  BLOCK_SPARSE_CUDA_OK(cudaDeviceSynchronize());
  const std::vector<std::uint8_t> first = call.y.bytes();
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(forward(call.args, nullptr).ok());
    BLOCK_SPARSE_CUDA_OK(cudaDeviceSynchronize());
    EXPECT_EQ(call.y.bytes(), first);
  }
}

}  // namespace
}  // namespace block_sparse::cuda::test
