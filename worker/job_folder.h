// The output folder while a job works in it: who owns it, which blocks are finished, and how a
// later run of the same job continues.
//
// State lives in `.ptq-worker` inside the folder until the report is written:
//   job.json           the job's identity (spec and input digests) and the environment of its
//                      numbers
//   block-00000.json   block 0 is finished: its shard's name and SHA-256, its part of the report;
//                      a head that is quantized is the block behind the last one
//   records/           the blocks' records, unless the affine format is asked for, whose shards
//                      they are then
//   memory.json        the micro-batches of the job, which a resumed run keeps
//   fisher/            the Fisher metrics that blocks are tuned by
// In a fresh folder the input digests come later than the first shards: until they are known,
// job.json has none, no block is finished, and what a killed run left is worth nothing.
// A block's shard gets its name before its manifest does, both durably: a manifest never lies, at
// worst a shard without one is written again. The finished folder holds no state, and its
// report.json takes the place of job.json.
#ifndef PTQ_WORKER_JOB_FOLDER_H_
#define PTQ_WORKER_JOB_FOLDER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/cancellation.h"
#include "common/json.h"

namespace ptq {

// What makes two runs the same job.
struct JobIdentity {
  Json spec;    // job.json without the paths of its inputs
  Json inputs;  // their digests (InputDigests); null: not known yet
  // Engine version, device kind, compute dtype, precision of tuning: other ones give other bytes.
  Json environment;
};

// Not thread-safe. Holds a lock on the folder for its lifetime.
class JobFolder {
 public:
  // Creates `path` if need be and takes its lock (waits ten seconds for another worker to end:
  // kUnavailable). Removes temporary files that a killed run left. kAlreadyExists if the folder
  // belongs to another job or holds anything else, saying what differs. Records made in another
  // environment are discarded, with a sentence in `warnings()`.
  // `inputs` gives identity.inputs, waiting for them if need be: here, and with its errors, if the
  // folder holds a result or finished blocks; else not before Identify.
  static absl::StatusOr<std::unique_ptr<JobFolder>> Open(
      const std::string& path, JobIdentity identity, std::function<absl::StatusOr<Json>()> inputs,
      const CancellationToken& cancel);
  // Leaves a fresh folder empty if its job was never identified.
  ~JobFolder();
  JobFolder(const JobFolder&) = delete;
  JobFolder& operator=(const JobFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string record_folder() const;
  std::string fisher_folder() const;
  // Of the output formats, as the spec names them.
  std::vector<std::string> formats() const;
  const std::vector<std::string>& warnings() const { return warnings_; }

  // report.json of a run that finished, all its outputs verified by digest; else nothing.
  const std::optional<Json>& finished_report() const { return finished_report_; }
  // Results of blocks 0..n-1 (and the head), whose shards were verified by digest.
  const std::vector<Json>& finished_blocks() const { return finished_blocks_; }
  // SHA-256 of their shards.
  const std::vector<std::string>& shard_digests() const { return shard_digests_; }

  // Waits for the inputs' digests and makes them part of the folder, unless that is done. What
  // later runs are to believe must follow it.
  absl::Status Identify();
  // Complete after Identify.
  const JobIdentity& identity() const { return identity_; }

  // How the job uses memory, as SetMemory was told last, in an earlier run too; null before. Lost
  // where nothing of an earlier run is continued.
  const Json& memory() const { return memory_; }
  absl::Status SetMemory(const Json& memory);

  // Identify, then appends block `finished_blocks().size()`, whose shard, a path within the folder,
  // is on the disk already.
  absl::Status FinishBlock(const std::string& shard, const std::string& sha256, const Json& result);
  // Forgets blocks `first` and later: their records are damaged.
  absl::Status DropBlocksFrom(int64_t first);
  // Writes report.html, then report.json, which makes the folder complete, and removes the state.
  absl::Status Finish(const std::string& html, const Json& report);

 private:
  JobFolder(std::string path, int lock_fd, JobIdentity identity,
            std::function<absl::StatusOr<Json>()> inputs)
      : path_(std::move(path)),
        lock_fd_(lock_fd),
        identity_(std::move(identity)),
        inputs_(std::move(inputs)) {}
  std::string StatePath(const std::string& name) const;
  absl::Status RemoveTemporaryFiles();
  // Sets finished_report_ if the folder is an intact result of this job.
  absl::Status OpenFinished(const CancellationToken& cancel);
  absl::Status OpenUnfinished(const CancellationToken& cancel);
  absl::Status OpenFresh();
  absl::Status WriteIdentity() const;
  absl::Status LoadBlocks(const CancellationToken& cancel);
  absl::Status StartOver();

  const std::string path_;
  const int lock_fd_;
  JobIdentity identity_;
  std::function<absl::StatusOr<Json>()> inputs_;
  bool fresh_ = false;       // nothing of an earlier run was of use
  bool identified_ = false;  // the inputs' digests are known, and in the folder's job.json
  std::vector<std::string> warnings_;
  std::optional<Json> finished_report_;
  Json memory_;
  std::vector<Json> finished_blocks_;
  std::vector<std::string> shard_digests_;
};

}  // namespace ptq

#endif  // PTQ_WORKER_JOB_FOLDER_H_
