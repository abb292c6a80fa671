#include <cudnn_frontend.h>

#include <cmath>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "algorithms/cuda/attention_spans.h"

namespace ptq {
namespace {

namespace fe = cudnn_frontend;
using fe::graph::Tensor_attributes;

enum Uid : int64_t {
  kQuery = 1,
  kKey,
  kValue,
  kOutput,
  kLogSumExp,
  kOutputGradient,
  kQueryGradient,
  kKeyGradient,
  kValueGradient,
};

// A graph with its chosen plan; `graph` is none where cuDNN has none.
struct Plan {
  std::shared_ptr<fe::graph::Graph> graph;
  int64_t workspace = -1;
};

cudnnHandle_t Handle() {
  // One a thread, as cuDNN asks; none where it can't be made. It lives as long as the process.
  thread_local cudnnHandle_t handle = [] {
    cudnnHandle_t created = nullptr;
    return cudnnCreate(&created) == CUDNN_STATUS_SUCCESS ? created : nullptr;
  }();
  return handle;
}

class Builder {
 public:
  explicit Builder(const AttentionSpans& spans)
      : spans_(spans), graph_(std::make_shared<fe::graph::Graph>()) {
    graph_
        ->set_io_data_type(spans.dtype == HiddenDtype::kHalf ? fe::DataType_t::HALF
                                                             : fe::DataType_t::BFLOAT16)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
  }

  Plan Forward() {
    auto options = fe::graph::SDPA_attributes()
                       .set_name("attention")
                       .set_generate_stats(true)
                       .set_causal_mask(true)
                       .set_attn_scale(Scale());
    auto [output, statistics] = graph_->sdpa(
        Input(kQuery, spans_.query, spans_.heads), Input(kKey, spans_.key, spans_.key_heads),
        Input(kValue, spans_.value, spans_.key_heads), options);
    Place(*output, kOutput, spans_.output, spans_.heads).set_output(true);
    PlaceLogSumExp(*statistics).set_output(true);
    return Finish();
  }

  Plan Backward() {
    auto options = fe::graph::SDPA_backward_attributes()
                       .set_name("attention_backward")
                       .set_causal_mask(true)
                       .set_attn_scale(Scale())
                       .set_deterministic_algorithm(true);
    Tensor_attributes statistics;
    PlaceLogSumExp(statistics);
    auto [query, key, value] = graph_->sdpa_backward(
        Input(kQuery, spans_.query, spans_.heads), Input(kKey, spans_.key, spans_.key_heads),
        Input(kValue, spans_.value, spans_.key_heads), Input(kOutput, spans_.output, spans_.heads),
        Input(kOutputGradient, spans_.output_gradient, spans_.heads), graph_->tensor(statistics),
        options);
    Place(*query, kQueryGradient, spans_.query_gradient, spans_.heads).set_output(true);
    Place(*key, kKeyGradient, spans_.key_gradient, spans_.key_heads).set_output(true);
    Place(*value, kValueGradient, spans_.value_gradient, spans_.key_heads).set_output(true);
    return Finish();
  }

 private:
  float Scale() const { return 1.0F / std::sqrt(static_cast<float>(spans_.head_dim)); }

  Tensor_attributes& Place(Tensor_attributes& tensor, Uid uid, const HeadSpans& heads,
                           int64_t count) const {
    return tensor.set_uid(uid)
        .set_dim({spans_.batch, count, spans_.length, spans_.head_dim})
        .set_stride({heads.batch_stride, heads.head_stride, heads.token_stride, 1});
  }
  Tensor_attributes& PlaceLogSumExp(Tensor_attributes& tensor) const {
    return tensor.set_uid(kLogSumExp)
        .set_dim({spans_.batch, spans_.heads, spans_.length, 1})
        .set_stride({spans_.heads * spans_.length, spans_.length, 1, 1})
        .set_data_type(fe::DataType_t::FLOAT);
  }
  std::shared_ptr<Tensor_attributes> Input(Uid uid, const HeadSpans& heads, int64_t count) {
    Tensor_attributes tensor;
    Place(tensor, uid, heads, count);
    return graph_->tensor(tensor);
  }

  Plan Finish() {
    cudnnHandle_t handle = Handle();
    // Heuristics, not timing: the same plan in every run.
    if (handle == nullptr || graph_->validate().is_bad() ||
        graph_->build_operation_graph(handle).is_bad() ||
        graph_->create_execution_plans({fe::HeurMode_t::A}).is_bad() ||
        graph_->check_support(handle).is_bad() || graph_->build_plans(handle).is_bad()) {
      return {};
    }
    Plan plan{graph_, 0};
    return graph_->get_workspace_size(plan.workspace).is_bad() ? Plan{} : plan;
  }

  const AttentionSpans& spans_;
  std::shared_ptr<fe::graph::Graph> graph_;
};

// Everything that a plan depends on.
std::vector<int64_t> KeyOf(const AttentionSpans& spans, AttentionDirection direction) {
  std::vector<int64_t> key = {static_cast<int64_t>(direction),
                              static_cast<int64_t>(spans.dtype),
                              spans.batch,
                              spans.length,
                              spans.heads,
                              spans.key_heads,
                              spans.head_dim};
  for (const HeadSpans* heads :
       {&spans.query, &spans.key, &spans.value, &spans.output, &spans.output_gradient,
        &spans.query_gradient, &spans.key_gradient, &spans.value_gradient}) {
    key.insert(key.end(), {heads->batch_stride, heads->head_stride, heads->token_stride});
  }
  return key;
}

const Plan& PlanFor(const AttentionSpans& spans, AttentionDirection direction) {
  thread_local std::map<std::vector<int64_t>, Plan> plans;
  const std::vector<int64_t> key = KeyOf(spans, direction);
  auto found = plans.find(key);
  if (found == plans.end()) {
    Builder builder(spans);
    found = plans
                .emplace(key, direction == AttentionDirection::kForward ? builder.Forward()
                                                                        : builder.Backward())
                .first;
  }
  return found->second;
}

}  // namespace

int64_t AttentionWorkspace(const AttentionSpans& spans, AttentionDirection direction) {
  return PlanFor(spans, direction).workspace;
}

bool RunAttention(const AttentionSpans& spans, AttentionDirection direction, void* stream) {
  const Plan& plan = PlanFor(spans, direction);
  cudnnHandle_t handle = Handle();
  if (plan.graph == nullptr ||
      cudnnSetStream(handle, static_cast<cudaStream_t>(stream)) != CUDNN_STATUS_SUCCESS) {
    return false;
  }
  const auto pointer = [](const void* data) { return const_cast<void*>(data); };
  std::unordered_map<int64_t, void*> pointers = {{kQuery, pointer(spans.query.data)},
                                                 {kKey, pointer(spans.key.data)},
                                                 {kValue, pointer(spans.value.data)},
                                                 {kOutput, pointer(spans.output.data)},
                                                 {kLogSumExp, spans.log_sum_exp}};
  if (direction == AttentionDirection::kBackward) {
    pointers.insert({{kOutputGradient, pointer(spans.output_gradient.data)},
                     {kQueryGradient, pointer(spans.query_gradient.data)},
                     {kKeyGradient, pointer(spans.key_gradient.data)},
                     {kValueGradient, pointer(spans.value_gradient.data)}});
  }
  return plan.graph->execute(handle, pointers, spans.workspace).is_good();
}

}  // namespace ptq
