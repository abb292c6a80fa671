// What must survive: models, datasets, jobs with their events and artifacts, and request ids.
#ifndef PTQ_SERVER_STORE_JOB_STORE_H_
#define PTQ_SERVER_STORE_JOB_STORE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "ptq/v1/blob_store.pb.h"
#include "ptq/v1/quantization_service.pb.h"
#include "server/store/list_filter.h"

namespace ptq {

// "models" or "datasets": the collection's name inside a tenant.
enum class InputKind { kModel, kDataset };
const char* InputCollection(InputKind kind);

struct InputRecord {
  std::string tenant;
  InputKind kind = InputKind::kModel;
  std::string id;
  std::string payload;             // serialized v1::Model or v1::Dataset
  std::vector<std::string> blobs;  // hashes of the manifest's files
  absl::Time create_time;
};

// A client's request_id with what it asked for.
struct RequestKey {
  std::string method;  // "CreateModel"
  std::string id;
  std::string body_digest;  // SHA-256 of the request without the id
};

struct JobRecord {
  std::string tenant;
  std::string id;
  v1::QuantizationJob job;    // create_time orders lists; name is derived from tenant and id
  int64_t last_sequence = 0;  // of the job's events
  int32_t lost_workers = 0;   // since it was created or resumed
  std::string worker_handle;  // of the running worker, for the next server process to end
};

// Where a list goes on: strictly after this entry in the list's order.
struct ListCursor {
  absl::Time create_time;
  std::string id;
};

// Thread-safe. A change is durable and whole when its call returns OK, and absent otherwise.
// kNotFound without details if a row is not there; kResourceExhausted if the disk is full.
class JobStore {
 public:
  virtual ~JobStore() = default;

  // --- request ids: the resource that an earlier request made, or nothing. kInvalidArgument,
  // reason REQUEST_ID_REUSED, if that request asked for something else.
  virtual absl::StatusOr<std::optional<std::string>> FindRequest(const std::string& tenant,
                                                                 const RequestKey& request) = 0;
  // Forgets requests older than `before` whose resource is gone.
  virtual absl::Status ForgetRequests(absl::Time before) = 0;

  // --- models and datasets. Inserting one that is already there keeps the old one.
  // kFailedPrecondition with the missing blobs if one was removed meanwhile.
  virtual absl::Status InsertInput(const InputRecord& input,
                                   const std::optional<RequestKey>& request) = 0;
  virtual absl::StatusOr<InputRecord> GetInput(const std::string& tenant, InputKind kind,
                                               const std::string& id) = 0;
  // Newest first.
  virtual absl::StatusOr<std::vector<InputRecord>> ListInputs(
      const std::string& tenant, InputKind kind, const std::optional<ListCursor>& after,
      int limit) = 0;
  // Returns the hashes it named. kFailedPrecondition while an unfinished job uses it.
  virtual absl::StatusOr<std::vector<std::string>> DeleteInput(const std::string& tenant,
                                                               InputKind kind,
                                                               const std::string& id) = 0;

  // --- jobs. Returns the id of the job: `record.id`, or that of the earlier job made by the same
  // request. kNotFound if one of its inputs was deleted meanwhile.
  virtual absl::StatusOr<std::string> InsertJob(const JobRecord& record,
                                                const std::vector<v1::JobEvent>& events,
                                                const std::vector<v1::FileNode>& artifacts,
                                                const std::optional<RequestKey>& request) = 0;
  virtual absl::StatusOr<JobRecord> GetJob(const std::string& tenant, const std::string& id) = 0;
  // Writes the record and appends the events. `artifacts`, if given, replaces the job's artifacts
  // and makes their blobs the tenant's.
  virtual absl::Status UpdateJob(const JobRecord& record, const std::vector<v1::JobEvent>& events,
                                 const std::vector<v1::FileNode>* artifacts) = 0;
  // Newest first.
  virtual absl::StatusOr<std::vector<JobRecord>> ListJobs(const std::string& tenant,
                                                          const std::vector<FilterTerm>& filter,
                                                          const std::optional<ListCursor>& after,
                                                          int limit) = 0;
  // The next job to run: highest priority, then oldest. Nothing if none is QUEUED.
  virtual absl::StatusOr<std::optional<JobRecord>> NextQueuedJob() = 0;
  virtual absl::StatusOr<std::vector<JobRecord>> JobsInStates(
      const std::vector<v1::QuantizationJob::State>& states) = 0;
  // The latest SUCCEEDED job with this action digest.
  virtual absl::StatusOr<std::optional<JobRecord>> FindReusableJob(
      const std::string& tenant, const std::string& action_hash) = 0;
  // Ended jobs whose expire_time has come.
  virtual absl::StatusOr<std::vector<JobRecord>> ExpiredJobs(absl::Time now) = 0;
  virtual absl::StatusOr<std::vector<v1::JobEvent>> ReadEvents(const std::string& tenant,
                                                               const std::string& id,
                                                               int64_t after_sequence,
                                                               int limit) = 0;
  // By path; after_path "" begins.
  virtual absl::StatusOr<std::vector<v1::FileNode>> ListArtifacts(const std::string& tenant,
                                                                  const std::string& id,
                                                                  const std::string& after_path,
                                                                  int limit) = 0;
  // Removes an ended job with its events and artifacts; returns the artifacts' hashes.
  // kFailedPrecondition if it has not ended.
  virtual absl::StatusOr<std::vector<std::string>> DeleteJob(const std::string& tenant,
                                                             const std::string& id) = 0;

  // 32 random bytes made when the store was created: authenticates page tokens.
  virtual const std::string& secret() const = 0;
};

}  // namespace ptq

#endif  // PTQ_SERVER_STORE_JOB_STORE_H_
