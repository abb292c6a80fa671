// ptq.v1.ModelService and ptq.v1.DatasetService.
#ifndef PTQ_SERVER_RPC_INPUT_SERVICES_H_
#define PTQ_SERVER_RPC_INPUT_SERVICES_H_

#include "ptq/v1/dataset_service.grpc.pb.h"
#include "ptq/v1/model_service.grpc.pb.h"
#include "server/blobs/blob_store.h"
#include "server/jobs/input_registry.h"
#include "server/rpc/page_token.h"
#include "server/store/job_store.h"

namespace ptq {

// What both services need; must outlive them.
struct InputServiceContext {
  InputRegistry& inputs;
  JobStore& store;
  BlobStore& blobs;
  const PageTokens& tokens;
};

class ModelServiceImpl final : public v1::ModelService::Service {
 public:
  explicit ModelServiceImpl(InputServiceContext& context) : context_(context) {}
  grpc::Status CreateModel(grpc::ServerContext* context, const v1::CreateModelRequest* request,
                           v1::Model* response) override;
  grpc::Status GetModel(grpc::ServerContext* context, const v1::GetByName* request,
                        v1::Model* response) override;
  grpc::Status ListModels(grpc::ServerContext* context, const v1::ListRequest* request,
                          v1::ListModelsResponse* response) override;
  grpc::Status DeleteModel(grpc::ServerContext* context, const v1::GetByName* request,
                           google::protobuf::Empty* response) override;

 private:
  InputServiceContext& context_;
};

class DatasetServiceImpl final : public v1::DatasetService::Service {
 public:
  explicit DatasetServiceImpl(InputServiceContext& context) : context_(context) {}
  grpc::Status CreateDataset(grpc::ServerContext* context, const v1::CreateDatasetRequest* request,
                             v1::Dataset* response) override;
  grpc::Status GetDataset(grpc::ServerContext* context, const v1::GetByName* request,
                          v1::Dataset* response) override;
  grpc::Status ListDatasets(grpc::ServerContext* context, const v1::ListRequest* request,
                            v1::ListDatasetsResponse* response) override;
  grpc::Status DeleteDataset(grpc::ServerContext* context, const v1::GetByName* request,
                             google::protobuf::Empty* response) override;

 private:
  InputServiceContext& context_;
};

}  // namespace ptq

#endif  // PTQ_SERVER_RPC_INPUT_SERVICES_H_
