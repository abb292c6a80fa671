// ptq.v1.BlobStore.
#ifndef PTQ_SERVER_RPC_BLOB_STORE_SERVICE_H_
#define PTQ_SERVER_RPC_BLOB_STORE_SERVICE_H_

#include "ptq/v1/blob_store.grpc.pb.h"
#include "server/blobs/blob_store.h"

namespace ptq {

class BlobStoreServiceImpl final : public v1::BlobStore::Service {
 public:
  explicit BlobStoreServiceImpl(BlobStore& blobs) : blobs_(blobs) {}
  grpc::Status FindMissingBlobs(grpc::ServerContext* context,
                                const v1::FindMissingBlobsRequest* request,
                                v1::FindMissingBlobsResponse* response) override;

 private:
  BlobStore& blobs_;
};

}  // namespace ptq

#endif  // PTQ_SERVER_RPC_BLOB_STORE_SERVICE_H_
