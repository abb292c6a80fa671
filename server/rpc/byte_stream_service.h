// google.bytestream.ByteStream over the blob store.
#ifndef PTQ_SERVER_RPC_BYTE_STREAM_SERVICE_H_
#define PTQ_SERVER_RPC_BYTE_STREAM_SERVICE_H_

#include <atomic>

#include "google/bytestream/bytestream.grpc.pb.h"
#include "server/blobs/blob_store.h"

namespace ptq {

inline constexpr int64_t kMaxChunkBytes = int64_t{2} << 20;

// Thread-safe. Synchronous: a stream that moves bytes has a thread, and at most `max_streams` have
// one, so that slow peers cannot take the threads of short calls.
class ByteStreamServiceImpl final : public google::bytestream::ByteStream::Service {
 public:
  ByteStreamServiceImpl(BlobStore& blobs, int max_streams)
      : blobs_(blobs), max_streams_(max_streams) {}

  // A full read ends with DATA_LOSS if the bytes are not those of the digest.
  grpc::Status Read(grpc::ServerContext* context, const google::bytestream::ReadRequest* request,
                    grpc::ServerWriter<google::bytestream::ReadResponse>* writer) override;
  grpc::Status Write(grpc::ServerContext* context,
                     grpc::ServerReader<google::bytestream::WriteRequest>* reader,
                     google::bytestream::WriteResponse* response) override;
  grpc::Status QueryWriteStatus(grpc::ServerContext* context,
                                const google::bytestream::QueryWriteStatusRequest* request,
                                google::bytestream::QueryWriteStatusResponse* response) override;

 private:
  absl::Status ReadBlob(const google::bytestream::ReadRequest& request,
                        grpc::ServerWriter<google::bytestream::ReadResponse>& writer);
  absl::Status WriteBlob(grpc::ServerReader<google::bytestream::WriteRequest>& reader,
                         google::bytestream::WriteResponse& response);

  BlobStore& blobs_;
  const int max_streams_;
  std::atomic<int> streams_{0};
};

}  // namespace ptq

#endif  // PTQ_SERVER_RPC_BYTE_STREAM_SERVICE_H_
