// JobStore and BlobIndex in one SQLite file: the embedded store of a single ptqd.
#ifndef PTQ_SERVER_STORE_SQLITE_JOB_STORE_H_
#define PTQ_SERVER_STORE_SQLITE_JOB_STORE_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "server/store/blob_index.h"
#include "server/store/job_store.h"
#include "server/store/sqlite_database.h"

namespace ptq {

// Thread-safe: one mutex, one connection.
class SqliteJobStore final : public JobStore, public BlobIndex {
 public:
  // Creates the file or continues with it. kFailedPrecondition if a newer ptqd wrote it, kDataLoss
  // if it is damaged.
  static absl::StatusOr<std::unique_ptr<SqliteJobStore>> Open(const std::string& path);

  absl::StatusOr<std::optional<std::string>> FindRequest(const std::string& tenant,
                                                         const RequestKey& request) override;
  absl::Status ForgetRequests(absl::Time before) override;

  absl::Status InsertInput(const InputRecord& input,
                           const std::optional<RequestKey>& request) override;
  absl::StatusOr<InputRecord> GetInput(const std::string& tenant, InputKind kind,
                                       const std::string& id) override;
  absl::StatusOr<std::vector<InputRecord>> ListInputs(const std::string& tenant, InputKind kind,
                                                      const std::optional<ListCursor>& after,
                                                      int limit) override;
  absl::StatusOr<std::vector<std::string>> DeleteInput(const std::string& tenant, InputKind kind,
                                                       const std::string& id) override;

  absl::StatusOr<std::string> InsertJob(const JobRecord& record,
                                        const std::vector<v1::JobEvent>& events,
                                        const std::vector<v1::FileNode>& artifacts,
                                        const std::optional<RequestKey>& request) override;
  absl::StatusOr<JobRecord> GetJob(const std::string& tenant, const std::string& id) override;
  absl::Status UpdateJob(const JobRecord& record, const std::vector<v1::JobEvent>& events,
                         const std::vector<v1::FileNode>* artifacts) override;
  absl::StatusOr<std::vector<JobRecord>> ListJobs(const std::string& tenant,
                                                  const std::vector<FilterTerm>& filter,
                                                  const std::optional<ListCursor>& after,
                                                  int limit) override;
  absl::StatusOr<std::optional<JobRecord>> NextQueuedJob() override;
  absl::StatusOr<std::vector<JobRecord>> JobsInStates(
      const std::vector<v1::QuantizationJob::State>& states) override;
  absl::StatusOr<std::optional<JobRecord>> FindReusableJob(const std::string& tenant,
                                                           const std::string& action_hash) override;
  absl::StatusOr<std::vector<JobRecord>> ExpiredJobs(absl::Time now) override;
  absl::StatusOr<std::vector<v1::JobEvent>> ReadEvents(const std::string& tenant,
                                                       const std::string& id,
                                                       int64_t after_sequence, int limit) override;
  absl::StatusOr<std::vector<v1::FileNode>> ListArtifacts(const std::string& tenant,
                                                          const std::string& id,
                                                          const std::string& after_path,
                                                          int limit) override;
  absl::StatusOr<std::vector<std::string>> DeleteJob(const std::string& tenant,
                                                     const std::string& id) override;
  const std::string& secret() const override { return secret_; }

  absl::Status AddBlob(const std::string& tenant, const v1::Digest& digest,
                       absl::Time now) override;
  absl::StatusOr<std::vector<v1::Digest>> MissingBlobs(const std::string& tenant,
                                                       const std::vector<v1::Digest>& digests,
                                                       absl::Time now) override;
  absl::Status ForgetBlob(const std::string& hash) override;
  absl::StatusOr<std::vector<std::string>> RemoveUnreferencedBlobs(
      const std::string& tenant, const std::vector<std::string>& hashes) override;
  absl::StatusOr<std::vector<std::pair<std::string, std::string>>> StaleBlobs(
      absl::Time before) override;

 private:
  explicit SqliteJobStore(std::unique_ptr<SqliteDatabase> database)
      : database_(std::move(database)) {}

  absl::Status CreateSchema();
  absl::StatusOr<std::optional<std::string>> FindRequestLocked(const std::string& tenant,
                                                               const RequestKey& request)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status InsertRequest(const std::string& tenant, const RequestKey& request,
                             const std::string& resource, absl::Time now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<bool> HasInput(const std::string& tenant, const std::string& name)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<bool> HasBlob(const std::string& tenant, const std::string& hash, int64_t size)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status WriteJobRow(const JobRecord& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status AppendEvents(const JobRecord& record, const std::vector<v1::JobEvent>& events)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status ReplaceArtifacts(const JobRecord& record, const std::vector<v1::FileNode>& artifacts)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status AddReference(const std::string& tenant, const std::string& owner,
                            const std::string& hash) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Forgets what `owner` names and returns it.
  absl::StatusOr<std::vector<std::string>> DropReferences(const std::string& tenant,
                                                          const std::string& owner)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Mutex mutex_;
  const std::unique_ptr<SqliteDatabase> database_ ABSL_PT_GUARDED_BY(mutex_);
  std::string secret_;
};

}  // namespace ptq

#endif  // PTQ_SERVER_STORE_SQLITE_JOB_STORE_H_
