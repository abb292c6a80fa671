// The API over a real loopback connection, with fake workers behind it.
#include <gmock/gmock.h>
#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/file.h"
#include "google/bytestream/bytestream.grpc.pb.h"
#include "ptq/v1/blob_store.grpc.pb.h"
#include "ptq/v1/capabilities.grpc.pb.h"
#include "ptq/v1/dataset_service.grpc.pb.h"
#include "ptq/v1/model_service.grpc.pb.h"
#include "ptq/v1/quantization_service.grpc.pb.h"
#include "server/server.h"
#include "tests/client/scratch_folder.h"
#include "tests/server/digest_of.h"
#include "tests/server/fake_launcher.h"
#include "tests/server/tiny_model.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using testing::DigestOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::IsOk;
using ::testing::SizeIs;
using testing::StatusIs;
using Job = v1::QuantizationJob;

constexpr char kParent[] = "tenants/default";
constexpr char kUuid[] = "123e4567-e89b-42d3-a456-426614174000";

template <typename Detail>
Detail DetailOf(const grpc::Status& status) {
  google::rpc::Status rpc_status;
  EXPECT_TRUE(rpc_status.ParseFromString(status.error_details())) << status.error_message();
  EXPECT_EQ(rpc_status.code(), static_cast<int>(status.error_code()));
  Detail detail;
  for (const auto& any : rpc_status.details()) {
    if (any.UnpackTo(&detail)) return detail;
  }
  ADD_FAILURE() << "no " << detail.GetTypeName() << " in: " << status.error_message();
  return detail;
}

std::string ReasonOf(const grpc::Status& status) {
  const auto info = DetailOf<google::rpc::ErrorInfo>(status);
  EXPECT_EQ(info.domain(), "ptq");
  return info.reason();
}

std::string FieldOf(const grpc::Status& status) {
  const auto bad_request = DetailOf<google::rpc::BadRequest>(status);
  return bad_request.field_violations_size() > 0 ? bad_request.field_violations(0).field() : "";
}

// Forwards to a launcher that the test keeps.
class BorrowedLauncher final : public WorkerLauncher {
 public:
  explicit BorrowedLauncher(WorkerLauncher& launcher) : launcher_(launcher) {}
  absl::StatusOr<std::unique_ptr<WorkerProcess>> Launch(const WorkerCommand& command) override {
    return launcher_.Launch(command);
  }
  absl::Status EndOrphan(const std::string& handle) override { return launcher_.EndOrphan(handle); }

 private:
  WorkerLauncher& launcher_;
};

class ServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    testing::WriteTinyModel(folder_.Path("models/tiny"));
    StartServer();
  }
  void TearDown() override { server_.reset(); }

  void StartServer() {
    ServerOptions options;
    options.data_dir = folder_.Path("data");
    options.listen = "127.0.0.1:0";
    options.model_roots = {folder_.Path("models")};
    auto server = Server::Start(options, std::make_unique<BorrowedLauncher>(launcher_));
    ASSERT_THAT(server, IsOk());
    server_ = *std::move(server);
    const auto channel =
        grpc::CreateChannel(server_->address(), grpc::InsecureChannelCredentials());
    bytes_ = google::bytestream::ByteStream::NewStub(channel);
    blobs_ = v1::BlobStore::NewStub(channel);
    models_ = v1::ModelService::NewStub(channel);
    datasets_ = v1::DatasetService::NewStub(channel);
    jobs_ = v1::QuantizationService::NewStub(channel);
    capabilities_ = v1::Capabilities::NewStub(channel);
  }

  // Calls a method of a stub with a fresh context.
  template <typename Stub, typename Method, typename Request, typename Response>
  static grpc::Status Call(Stub& stub, Method method, const Request& request, Response* response) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    return ((*stub).*method)(&context, request, response);
  }

  static std::string UploadResource(const v1::Digest& digest, const std::string& uuid = kUuid) {
    return absl::StrCat(kParent, "/uploads/", uuid, "/blobs/", digest.hash(), "/",
                        digest.size_bytes());
  }
  grpc::Status Upload(const std::string& resource, int64_t offset, const std::string& data,
                      bool finish, int64_t* committed = nullptr) {
    grpc::ClientContext context;
    google::bytestream::WriteResponse response;
    auto writer = bytes_->Write(&context, &response);
    google::bytestream::WriteRequest request;
    request.set_resource_name(resource);
    request.set_write_offset(offset);
    request.set_data(data);
    request.set_finish_write(finish);
    writer->Write(request);
    writer->WritesDone();
    const grpc::Status status = writer->Finish();
    if (committed != nullptr) *committed = response.committed_size();
    return status;
  }
  grpc::Status Read(const v1::Digest& digest, int64_t offset, int64_t limit, std::string* data) {
    grpc::ClientContext context;
    google::bytestream::ReadRequest request;
    request.set_resource_name(
        absl::StrCat(kParent, "/blobs/", digest.hash(), "/", digest.size_bytes()));
    request.set_read_offset(offset);
    request.set_read_limit(limit);
    auto reader = bytes_->Read(&context, request);
    google::bytestream::ReadResponse response;
    while (reader->Read(&response)) *data += response.data();
    return reader->Finish();
  }
  void UploadAll(const std::map<std::string, std::string>& files) {
    for (const auto& [name, bytes] : files) {
      const v1::Digest digest = DigestOf(bytes);
      const grpc::Status status = Upload(UploadResource(digest), 0, bytes, true);
      ASSERT_TRUE(status.ok()) << status.error_message();
    }
  }
  static v1::CreateModelRequest ModelRequest(const std::map<std::string, std::string>& files) {
    v1::CreateModelRequest request;
    request.set_parent(kParent);
    for (const auto& [name, bytes] : files) {
      v1::FileNode& node = *request.mutable_source()->mutable_manifest()->add_files();
      node.set_path(name);
      *node.mutable_digest() = DigestOf(bytes);
    }
    return request;
  }
  std::string CreateModel() {
    v1::CreateModelRequest request;
    request.set_parent(kParent);
    request.mutable_source()->set_server_path(folder_.Path("models/tiny"));
    v1::Model model;
    const grpc::Status status =
        Call(models_, &v1::ModelService::Stub::CreateModel, request, &model);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return model.name();
  }
  v1::CreateQuantizationJobRequest JobRequest() {
    v1::CreateQuantizationJobRequest request;
    request.set_parent(kParent);
    request.mutable_spec()->set_model(CreateModel());
    request.mutable_spec()->mutable_rtn();
    request.mutable_spec()->mutable_scheme()->set_group_size(16);
    return request;
  }
  grpc::Status CreateJob(const v1::CreateQuantizationJobRequest& request, Job* job) {
    return Call(jobs_, &v1::QuantizationService::Stub::CreateQuantizationJob, request, job);
  }
  Job MustCreateJob(const v1::CreateQuantizationJobRequest& request) {
    Job job;
    const grpc::Status status = CreateJob(request, &job);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return job;
  }
  Job GetJob(const std::string& name) {
    v1::GetByName request;
    request.set_name(name);
    Job job;
    EXPECT_TRUE(
        Call(jobs_, &v1::QuantizationService::Stub::GetQuantizationJob, request, &job).ok());
    return job;
  }
  Job AwaitState(const std::string& name, Job::State state) {
    Job job;
    for (int i = 0; i < 2000; ++i) {
      job = GetJob(name);
      if (job.state() == state) return job;
      absl::SleepFor(absl::Milliseconds(10));
    }
    ADD_FAILURE() << Job::State_Name(job.state()) << ": " << job.error().message();
    return job;
  }
  // The events of a watch until it ends or `limit` have come.
  grpc::Status Watch(const std::string& name, int64_t after, std::vector<v1::JobEvent>* events,
                     size_t limit = 1000) {
    grpc::ClientContext context;
    v1::WatchRequest request;
    request.set_name(name);
    request.set_after_sequence(after);
    auto reader = jobs_->WatchQuantizationJob(&context, request);
    v1::JobEvent event;
    while (events->size() < limit && reader->Read(&event)) events->push_back(event);
    if (events->size() == limit) context.TryCancel();
    return reader->Finish();
  }

  testing::ScratchFolder folder_;
  testing::FakeLauncher launcher_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<google::bytestream::ByteStream::Stub> bytes_;
  std::unique_ptr<v1::BlobStore::Stub> blobs_;
  std::unique_ptr<v1::ModelService::Stub> models_;
  std::unique_ptr<v1::DatasetService::Stub> datasets_;
  std::unique_ptr<v1::QuantizationService::Stub> jobs_;
  std::unique_ptr<v1::Capabilities::Stub> capabilities_;
};

TEST_F(ServiceTest, UploadsResumeAndAreReadInRanges) {
  const std::string content = "0123456789";
  const v1::Digest digest = DigestOf(content);
  const std::string resource = UploadResource(digest);
  int64_t committed = -1;
  ASSERT_TRUE(Upload(resource, 0, "0123", false, &committed).ok());
  EXPECT_EQ(committed, 4);
  google::bytestream::QueryWriteStatusRequest query;
  query.set_resource_name(resource);
  google::bytestream::QueryWriteStatusResponse status;
  ASSERT_TRUE(
      Call(bytes_, &google::bytestream::ByteStream::Stub::QueryWriteStatus, query, &status).ok());
  EXPECT_EQ(status.committed_size(), 4);
  EXPECT_FALSE(status.complete());
  EXPECT_EQ(Upload(resource, 5, "56789", true).error_code(), grpc::StatusCode::OUT_OF_RANGE);
  ASSERT_TRUE(Upload(resource, 2, content.substr(2), true, &committed).ok());
  EXPECT_EQ(committed, 10);
  ASSERT_TRUE(Upload(resource, 0, "", false, &committed).ok());
  EXPECT_EQ(committed, 10) << "an existing blob is answered at once";
  std::string data;
  ASSERT_TRUE(Read(digest, 3, 4, &data).ok());
  EXPECT_EQ(data, "3456");
  data.clear();
  ASSERT_TRUE(Read(digest, 10, 0, &data).ok());
  EXPECT_EQ(data, "");
  EXPECT_EQ(Read(digest, 11, 0, &data).error_code(), grpc::StatusCode::OUT_OF_RANGE);
  EXPECT_EQ(Read(digest, 0, -1, &data).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(ServiceTest, LiesAboutAnUploadAreRefused) {
  v1::Digest digest = DigestOf("hello");
  EXPECT_EQ(ReasonOf(Upload(UploadResource(digest), 0, "hullo", true)), "DIGEST_MISMATCH");
  EXPECT_EQ(ReasonOf(Upload(UploadResource(digest), 0, "hell", true)), "SIZE_MISMATCH");
  EXPECT_EQ(ReasonOf(Upload(UploadResource(digest), 0, "hello!", true)), "SIZE_MISMATCH");
  EXPECT_EQ(FieldOf(Upload("tenants/default/uploads/x/blobs/y/1", 0, "h", true)), "resource_name");
  std::string data;
  EXPECT_EQ(Read(digest, 0, 0, &data).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(Upload(UploadResource(digest), 0, std::string((2 << 20) + 1, 'x'), true).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Upload(UploadResource(digest), 0, std::string(5 << 20, 'x'), true).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(ServiceTest, ADamagedBlobEndsAFullReadWithDataLoss) {
  const v1::Digest digest = DigestOf("hello");
  ASSERT_TRUE(Upload(UploadResource(digest), 0, "hello", true).ok());
  const std::string path =
      folder_.Path("data/blobs/" + digest.hash().substr(0, 2) + "/" + digest.hash());
  ::chmod(path.c_str(), 0644);
  { std::ofstream(path) << "jello"; }
  std::string data;
  EXPECT_EQ(Read(digest, 0, 0, &data).error_code(), grpc::StatusCode::DATA_LOSS);
  EXPECT_EQ(Read(digest, 0, 0, &data).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(ServiceTest, MissingBlobsAreNamed) {
  const auto files = testing::TinyModelFiles();
  v1::FindMissingBlobsRequest find;
  find.set_parent(kParent);
  *find.add_digests() = DigestOf(files.at("config.json"));
  v1::FindMissingBlobsResponse missing;
  ASSERT_TRUE(Call(blobs_, &v1::BlobStore::Stub::FindMissingBlobs, find, &missing).ok());
  EXPECT_EQ(missing.missing_size(), 1);
  v1::Model model;
  const grpc::Status refused =
      Call(models_, &v1::ModelService::Stub::CreateModel, ModelRequest(files), &model);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  const auto failure = DetailOf<google::rpc::PreconditionFailure>(refused);
  ASSERT_EQ(failure.violations_size(), 3);
  EXPECT_EQ(failure.violations(0).type(), "MISSING");
  EXPECT_THAT(failure.violations(0).subject(), HasSubstr(DigestOf(files.at("config.json")).hash()));
  find.set_parent("tenants/other");
  EXPECT_EQ(Call(blobs_, &v1::BlobStore::Stub::FindMissingBlobs, find, &missing).error_code(),
            grpc::StatusCode::NOT_FOUND);
}

TEST_F(ServiceTest, TheSameFilesAreTheSameModel) {
  const auto files = testing::TinyModelFiles();
  UploadAll(files);
  v1::Model validated, first, second;
  auto request = ModelRequest(files);
  request.set_validate_only(true);
  ASSERT_TRUE(Call(models_, &v1::ModelService::Stub::CreateModel, request, &validated).ok());
  v1::GetByName get;
  get.set_name(validated.name());
  EXPECT_EQ(Call(models_, &v1::ModelService::Stub::GetModel, get, &first).error_code(),
            grpc::StatusCode::NOT_FOUND);
  request.set_validate_only(false);
  ASSERT_TRUE(Call(models_, &v1::ModelService::Stub::CreateModel, request, &first).ok());
  EXPECT_EQ(first.name(), validated.name());
  EXPECT_EQ(first.architecture(), "LlamaForCausalLM");
  EXPECT_EQ(first.block_count(), 2);
  EXPECT_EQ(first.tensor_count(), 20);
  absl::SleepFor(absl::Milliseconds(2));
  ASSERT_TRUE(Call(models_, &v1::ModelService::Stub::CreateModel, request, &second).ok());
  EXPECT_EQ(second.SerializeAsString(), first.SerializeAsString());
  ASSERT_TRUE(Call(models_, &v1::ModelService::Stub::GetModel, get, &second).ok());
  google::protobuf::Empty empty;
  ASSERT_TRUE(Call(models_, &v1::ModelService::Stub::DeleteModel, get, &empty).ok());
  const grpc::Status gone = Call(models_, &v1::ModelService::Stub::GetModel, get, &second);
  EXPECT_EQ(gone.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(DetailOf<google::rpc::ResourceInfo>(gone).resource_name(), get.name());
}

TEST_F(ServiceTest, BadModelsAreRefusedWithTheirReason) {
  const auto refuse = [this](std::map<std::string, std::string> files) {
    UploadAll(files);
    v1::Model model;
    const grpc::Status status =
        Call(models_, &v1::ModelService::Stub::CreateModel, ModelRequest(files), &model);
    EXPECT_THAT(status.error_message(), ::testing::Not(HasSubstr("/tmp")));
    return status;
  };
  auto files = testing::TinyModelFiles();
  files["model.safetensors"].pop_back();
  EXPECT_EQ(refuse(files).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  files = testing::TinyModelFiles();
  files["config.json"] = R"({"model_type": "mystery"})";
  EXPECT_EQ(refuse(files).error_code(), grpc::StatusCode::UNIMPLEMENTED);
  files = testing::TinyModelFiles();
  files.erase("config.json");
  const grpc::Status no_config = refuse(files);
  EXPECT_EQ(no_config.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(FieldOf(no_config), "source");
  EXPECT_TRUE(ListDirectory(folder_.Path("data/tmp"))->empty()) << "something was left behind";
}

TEST_F(ServiceTest, UnsafeManifestsAndPathsAreRefused) {
  const auto files = testing::TinyModelFiles();
  UploadAll(files);
  v1::Model model;
  for (const char* path : {"../x", "/etc/passwd", "a/../b", "", "a//b", "config.json"}) {
    auto request = ModelRequest(files);
    v1::FileNode& extra = *request.mutable_source()->mutable_manifest()->add_files();
    extra.set_path(path);
    *extra.mutable_digest() = DigestOf(files.at("config.json"));
    const grpc::Status status =
        Call(models_, &v1::ModelService::Stub::CreateModel, request, &model);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << path;
    EXPECT_THAT(FieldOf(status), HasSubstr("source.manifest.files"));
  }
  const auto create = [&](auto set) {
    v1::CreateModelRequest request;
    request.set_parent(kParent);
    set(*request.mutable_source());
    return Call(models_, &v1::ModelService::Stub::CreateModel, request, &model).error_code();
  };
  EXPECT_EQ(create([](v1::Source& s) { s.set_server_path("/etc"); }),
            grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(create([](v1::Source& s) { s.set_server_path("models"); }),
            grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(create([](v1::Source& s) { s.set_uri("http://169.254.169.254/"); }),
            grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(create([](v1::Source&) {}), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(ServiceTest, DatasetsAreOneFileAndAreChecked) {
  const auto create = [this](const std::string& name, const std::string& bytes,
                             v1::Dataset* dataset) {
    UploadAll({{name, bytes}});
    v1::CreateDatasetRequest request;
    request.set_parent(kParent);
    v1::FileNode& node = *request.mutable_source()->mutable_manifest()->add_files();
    node.set_path(name);
    *node.mutable_digest() = DigestOf(bytes);
    return Call(datasets_, &v1::DatasetService::Stub::CreateDataset, request, dataset);
  };
  v1::Dataset dataset;
  ASSERT_TRUE(create("c.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n", &dataset).ok());
  EXPECT_EQ(dataset.document_count(), 2);
  const grpc::Status bad = create("d.jsonl", "{\"text\": \"a\"}\n{\"text\": 7}\n", &dataset);
  EXPECT_EQ(bad.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(bad.error_message(), HasSubstr("2"));
  EXPECT_EQ(create("e.csv", "a,b", &dataset).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(ServiceTest, ValidateOnlyKeepsNothingAndShowsTheJobSpec) {
  auto request = JobRequest();
  request.set_validate_only(true);
  const Job job = MustCreateJob(request);
  EXPECT_THAT(job.job_spec_json(), HasSubstr(folder_.Path("models/tiny")));
  EXPECT_THAT(job.job_spec_json(), HasSubstr("\"group_size\":16"));
  v1::ListRequest list;
  list.set_parent(kParent);
  v1::ListQuantizationJobsResponse listed;
  ASSERT_TRUE(
      Call(jobs_, &v1::QuantizationService::Stub::ListQuantizationJobs, list, &listed).ok());
  EXPECT_EQ(listed.jobs_size(), 0);
}

TEST_F(ServiceTest, SpecErrorsNameTheirField) {
  Job job;
  const auto field = [&](auto change) {
    auto request = JobRequest();
    change(request);
    const grpc::Status status = CreateJob(request, &job);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << status.error_message();
    return FieldOf(status);
  };
  using Request = v1::CreateQuantizationJobRequest;
  EXPECT_EQ(field([](Request& r) { r.mutable_spec()->mutable_scheme()->set_bits(1); }),
            "spec.scheme.bits");
  EXPECT_EQ(field([](Request& r) { r.mutable_spec()->mutable_scheme()->set_group_size(48); }),
            "spec.scheme.group_size");
  EXPECT_EQ(field([](Request& r) {
              r.mutable_spec()->add_rules()->set_pattern("nothing");
              r.mutable_spec()->mutable_rules(0)->set_skip(true);
            }),
            "spec.rules");
  EXPECT_EQ(field([](Request& r) { r.mutable_spec()->set_model("x"); }), "spec.model");
  EXPECT_EQ(field([](Request& r) { r.set_request_id("not-a-uuid"); }), "request_id");
  EXPECT_EQ(field([](Request& r) { (*r.mutable_labels())["bad key"] = "x"; }), "labels");
  EXPECT_EQ(field([](Request& r) { r.set_parent("tenants"); }), "parent");
  auto request = JobRequest();
  request.mutable_spec()->set_model("tenants/default/models/unknown");
  EXPECT_EQ(CreateJob(request, &job).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(ServiceTest, AQuantizedModelIsForConversionsAlone) {
  testing::WriteTinyModel(folder_.Path("models/packed"), /*tokenizer=*/true);
  auto config = ParseJson(testing::kTinyConfig);
  (*config)["quantization_config"] = {{"quant_method", "gptq"}, {"bits", 4}};
  folder_.Write("models/packed/config.json", DumpJson(*config));
  v1::CreateModelRequest model_request;
  model_request.set_parent(kParent);
  model_request.mutable_source()->set_server_path(folder_.Path("models/packed"));
  v1::Model model;
  ASSERT_TRUE(Call(models_, &v1::ModelService::Stub::CreateModel, model_request, &model).ok());
  EXPECT_EQ(model.quantized_format(), "gptq");
  EXPECT_EQ(model.architecture(), "LlamaForCausalLM");
  EXPECT_EQ(model.block_count(), 2);

  auto request = JobRequest();
  const std::string plain = request.spec().model();
  request.mutable_spec()->set_model(model.name());
  Job job;
  grpc::Status status = CreateJob(request, &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(FieldOf(status), "spec.model");
  EXPECT_THAT(status.error_message(), HasSubstr("already quantized (gptq)"));
  EXPECT_THAT(status.error_message(), HasSubstr("`convert`"));

  v1::CreateQuantizationJobRequest conversion;
  conversion.set_parent(kParent);
  conversion.mutable_spec()->set_model(model.name());
  conversion.mutable_spec()->mutable_convert();
  conversion.mutable_spec()->add_output_formats("gguf");
  conversion.set_validate_only(true);
  job = MustCreateJob(conversion);
  EXPECT_THAT(job.job_spec_json(), HasSubstr(R"({"task":"convert","model":)"));
  EXPECT_EQ(job.progress().blocks_total(), 2);
  conversion.mutable_spec()->set_model(plain);
  status = CreateJob(conversion, &job);
  EXPECT_EQ(FieldOf(status), "spec.model");
  EXPECT_THAT(status.error_message(), HasSubstr("the model is not quantized"));

  (*config)["quantization_config"]["quant_method"] = "bitsandbytes";
  folder_.Write("models/packed/config.json", DumpJson(*config));
  status = Call(models_, &v1::ModelService::Stub::CreateModel, model_request, &model);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("\"bitsandbytes\" can't be read"));
}

TEST_F(ServiceTest, TextNeedsATokenizer) {
  testing::WriteTinyModel(folder_.Path("models/bare"), /*tokenizer=*/false);
  folder_.Write("models/c.txt", "words");
  v1::CreateModelRequest model_request;
  model_request.set_parent(kParent);
  model_request.mutable_source()->set_server_path(folder_.Path("models/bare"));
  v1::Model model;
  ASSERT_TRUE(Call(models_, &v1::ModelService::Stub::CreateModel, model_request, &model).ok());
  v1::CreateDatasetRequest data_request;
  data_request.set_parent(kParent);
  data_request.mutable_source()->set_server_path(folder_.Path("models/c.txt"));
  v1::Dataset dataset;
  ASSERT_TRUE(
      Call(datasets_, &v1::DatasetService::Stub::CreateDataset, data_request, &dataset).ok());
  auto request = JobRequest();
  request.mutable_spec()->set_model(model.name());
  request.mutable_spec()->set_calibration_dataset(dataset.name());
  Job job;
  const grpc::Status status = CreateJob(request, &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("input_ids"));
}

TEST_F(ServiceTest, ARequestIdMakesOneJobHoweverManyAsk) {
  auto request = JobRequest();
  request.set_request_id(kUuid);
  (*request.mutable_labels())["a"] = "1";
  (*request.mutable_labels())["b"] = "2";
  std::vector<std::string> names(16);
  std::vector<std::thread> threads;
  for (std::string& name : names) {
    threads.emplace_back([&, this] { name = MustCreateJob(request).name(); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(names, ::testing::Each(names[0]));
  request.mutable_spec()->set_seed(1);
  Job job;
  const grpc::Status reused = CreateJob(request, &job);
  EXPECT_EQ(reused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(ReasonOf(reused), "REQUEST_ID_REUSED");
}

TEST_F(ServiceTest, AWatchGivesASnapshotThenEveryEventOnce) {
  const Job job = MustCreateJob(JobRequest());
  auto worker = launcher_.AwaitWorker(1);
  ASSERT_NE(worker, nullptr);
  AwaitState(job.name(), Job::RUNNING);
  std::vector<v1::JobEvent> events;
  std::thread watcher([&] {
    const grpc::Status status = Watch(job.name(), 0, &events);
    EXPECT_TRUE(status.ok()) << status.error_message();
  });
  worker->SayStarted(2);
  worker->SayBlockDone(0);
  worker->SayBlockDone(1);
  worker->Succeed();
  watcher.join();
  ASSERT_FALSE(events.empty());
  EXPECT_TRUE(events.front().has_snapshot());
  EXPECT_EQ(events.front().snapshot().name(), job.name());
  for (size_t i = 1; i < events.size(); ++i) {
    EXPECT_EQ(events[i].sequence(), events[i - 1].sequence() + 1);
  }
  EXPECT_EQ(events.back().snapshot().state(), Job::SUCCEEDED);
  EXPECT_EQ(events.back().snapshot().spec().SerializeAsString(), job.spec().SerializeAsString());

  // From the beginning, and from the middle, through a restart.
  server_.reset();
  StartServer();
  std::vector<v1::JobEvent> all, rest;
  ASSERT_TRUE(Watch(job.name(), 1, &all).ok());
  EXPECT_EQ(all.front().sequence(), 2);
  EXPECT_EQ(all.back().sequence(), events.back().sequence());
  EXPECT_EQ(std::count_if(all.begin(), all.end(), [](const auto& e) { return e.has_block(); }), 2);
  ASSERT_TRUE(Watch(job.name(), events.back().sequence() - 1, &rest).ok());
  ASSERT_THAT(rest, SizeIs(1));
  EXPECT_EQ(rest[0].snapshot().state(), Job::SUCCEEDED);
  rest.clear();
  ASSERT_TRUE(Watch(job.name(), events.back().sequence(), &rest).ok());
  EXPECT_THAT(rest, SizeIs(0));
  EXPECT_EQ(Watch(job.name(), events.back().sequence() + 1, &rest).error_code(),
            grpc::StatusCode::OUT_OF_RANGE);
}

TEST_F(ServiceTest, WatchersThatLeaveAndAServerThatStopsAreNoTrouble) {
  const Job job = MustCreateJob(JobRequest());
  AwaitState(job.name(), Job::RUNNING);
  for (int i = 0; i < 20; ++i) {
    std::vector<v1::JobEvent> events;
    EXPECT_EQ(Watch(job.name(), 0, &events, 1).error_code(), grpc::StatusCode::CANCELLED);
  }
  std::vector<v1::JobEvent> events;
  grpc::Status status;
  std::thread watcher([&] { status = Watch(job.name(), 0, &events); });
  absl::SleepFor(absl::Milliseconds(100));
  server_->Stop();
  watcher.join();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(ServiceTest, LogsAreFollowedToTheEnd) {
  const Job job = MustCreateJob(JobRequest());
  auto worker = launcher_.AwaitWorker(1);
  ASSERT_NE(worker, nullptr);
  std::vector<v1::LogEntry> entries;
  std::thread reader([&] {
    grpc::ClientContext context;
    v1::ReadJobLogsRequest request;
    request.set_name(job.name());
    request.set_follow(true);
    auto stream = jobs_->ReadJobLogs(&context, request);
    v1::LogEntry entry;
    while (stream->Read(&entry)) entries.push_back(entry);
    EXPECT_TRUE(stream->Finish().ok());
  });
  {
    std::ofstream log(worker->command().log_path);
    log << "first\nsecond\nlast words";
  }
  worker->Succeed();
  reader.join();
  ASSERT_THAT(entries, SizeIs(3));
  EXPECT_EQ(entries[2].message(), "last words");
  EXPECT_EQ(entries[2].line(), 3);
}

TEST_F(ServiceTest, ResultsAreListedReportedAndRead) {
  const Job job = MustCreateJob(JobRequest());
  v1::GetByName get;
  get.set_name(job.name());
  v1::QuantizationReport report;
  const grpc::Status early =
      Call(jobs_, &v1::QuantizationService::Stub::GetQuantizationReport, get, &report);
  EXPECT_EQ(early.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(ReasonOf(early), "JOB_NOT_SUCCEEDED");
  launcher_.AwaitWorker(1)->Succeed("the weights");
  AwaitState(job.name(), Job::SUCCEEDED);
  ASSERT_TRUE(
      Call(jobs_, &v1::QuantizationService::Stub::GetQuantizationReport, get, &report).ok());
  EXPECT_EQ(report.report_json(), "{\"blocks\": []}");
  v1::ListRequest list;
  list.set_parent(job.name());
  list.set_page_size(1);
  v1::ListArtifactsResponse page;
  ASSERT_TRUE(Call(jobs_, &v1::QuantizationService::Stub::ListArtifacts, list, &page).ok());
  ASSERT_EQ(page.files_size(), 1);
  EXPECT_EQ(page.files(0).path(), "model.safetensors");
  std::string data;
  ASSERT_TRUE(Read(page.files(0).digest(), 0, 0, &data).ok());
  EXPECT_EQ(data, "the weights");
  list.set_page_token(page.next_page_token());
  page.Clear();
  ASSERT_TRUE(Call(jobs_, &v1::QuantizationService::Stub::ListArtifacts, list, &page).ok());
  ASSERT_EQ(page.files_size(), 1);
  EXPECT_EQ(page.files(0).path(), "report.json");
  EXPECT_EQ(page.next_page_token(), "");
}

TEST_F(ServiceTest, ListsPageAndFilterJobs) {
  for (const char* team : {"x", "y", "x"}) {
    auto request = JobRequest();
    (*request.mutable_labels())["team"] = team;
    MustCreateJob(request);
  }
  const auto list = [this](const std::string& filter, int size, const std::string& token,
                           v1::ListQuantizationJobsResponse* page) {
    v1::ListRequest request;
    request.set_parent(kParent);
    request.set_filter(filter);
    request.set_page_size(size);
    request.set_page_token(token);
    return Call(jobs_, &v1::QuantizationService::Stub::ListQuantizationJobs, request, page);
  };
  v1::ListQuantizationJobsResponse page;
  ASSERT_TRUE(list("labels.team = x", 1, "", &page).ok());
  ASSERT_EQ(page.jobs_size(), 1);
  const std::string token = page.next_page_token();
  ASSERT_NE(token, "");
  const std::string first = page.jobs(0).name();
  ASSERT_TRUE(list("labels.team = x", 10, token, &page).ok());
  ASSERT_EQ(page.jobs_size(), 1);
  EXPECT_NE(page.jobs(0).name(), first);
  EXPECT_EQ(page.next_page_token(), "");
  EXPECT_EQ(FieldOf(list("labels.team = y", 10, token, &page)), "page_token");
  EXPECT_EQ(FieldOf(list("", -1, "", &page)), "page_size");
  const grpc::Status bad = list("state = DONE", 10, "", &page);
  EXPECT_EQ(FieldOf(bad), "filter");
  EXPECT_THAT(bad.error_message(), HasSubstr("position 9"));
}

TEST_F(ServiceTest, ActionsOnUnknownAndEndedJobs) {
  v1::JobAction action;
  action.set_name("tenants/default/quantizationJobs/unknown");
  google::protobuf::Empty empty;
  using Stub = v1::QuantizationService::Stub;
  const grpc::Status unknown = Call(jobs_, &Stub::CancelQuantizationJob, action, &empty);
  EXPECT_EQ(unknown.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(DetailOf<google::rpc::ResourceInfo>(unknown).resource_name(), action.name());
  action.set_name(MustCreateJob(JobRequest()).name());
  ASSERT_TRUE(Call(jobs_, &Stub::CancelQuantizationJob, action, &empty).ok());
  AwaitState(action.name(), Job::CANCELLED);
  const grpc::Status ended = Call(jobs_, &Stub::CancelQuantizationJob, action, &empty);
  EXPECT_EQ(ended.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(ReasonOf(ended), "JOB_ENDED");
  Job job;
  EXPECT_EQ(Call(jobs_, &Stub::PauseQuantizationJob, action, &job).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
  ASSERT_TRUE(Call(jobs_, &Stub::ResumeQuantizationJob, action, &job).ok());
  EXPECT_EQ(job.state(), Job::QUEUED);
}

TEST_F(ServiceTest, CapabilitiesNameTheLimits) {
  v1::ServerCapabilities capabilities;
  ASSERT_TRUE(Call(capabilities_, &v1::Capabilities::Stub::GetCapabilities,
                   google::protobuf::Empty(), &capabilities)
                  .ok());
  EXPECT_EQ(capabilities.max_chunk_bytes(), 2 << 20);
  EXPECT_EQ(capabilities.algorithms_size(), 4);
  EXPECT_THAT(capabilities.recipes(), ElementsAre("paper", "fast", "default", "best"));
  EXPECT_EQ(capabilities.model_roots(0), folder_.Path("models"));
}

TEST_F(ServiceTest, ASecondServerOnTheSameFolderIsRefused) {
  ServerOptions options;
  options.data_dir = folder_.Path("data");
  options.listen = "127.0.0.1:0";
  EXPECT_THAT(Server::Start(options, std::make_unique<BorrowedLauncher>(launcher_)),
              StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("another ptqd")));
  options.data_dir = folder_.Path("other");
  options.listen = server_->address();
  EXPECT_THAT(Server::Start(options, std::make_unique<BorrowedLauncher>(launcher_)),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("cannot listen")));
}

}  // namespace
}  // namespace ptq
