#!/usr/bin/env python3
"""Quantizes a checkpoint on a ptqd server: pipeline.py MODEL_DIR CALIBRATION OUTPUT_DIR [SERVER].
Upload what the server lacks, submit, watch until the end, download: what a pipeline needs, in one page.
"""
import hashlib
import pathlib
import sys
import uuid
ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / ".venv" / "ptq_stubs"))  # made by `make setup` from proto/

import grpc  # noqa: E402
from google.bytestream import bytestream_pb2 as bs, bytestream_pb2_grpc  # noqa: E402
from ptq.v1 import blob_store_pb2 as blobs, blob_store_pb2_grpc  # noqa: E402
from ptq.v1 import dataset_service_pb2 as ds, dataset_service_pb2_grpc  # noqa: E402
from ptq.v1 import model_service_pb2 as ms, model_service_pb2_grpc  # noqa: E402
from ptq.v1 import quantization_service_pb2 as qs, quantization_service_pb2_grpc  # noqa: E402
from ptq.v1 import quantization_spec_pb2 as spec, resources_pb2 as res  # noqa: E402
TENANT, CHUNK, SECONDS = "tenants/default", 1 << 20, 30


def upload(channel, paths):
    """Sends the files that the server lacks and returns a Source naming all of them."""
    nodes = []
    for path in paths:
        digest = hashlib.file_digest(path.open("rb"), "sha256").hexdigest()
        nodes.append((path, blobs.Digest(hash=digest, size_bytes=path.stat().st_size)))
    missing = blob_store_pb2_grpc.BlobStoreStub(channel).FindMissingBlobs(
        blobs.FindMissingBlobsRequest(parent=TENANT, digests=[d for _, d in nodes]), timeout=SECONDS).missing
    wanted = {d.hash for d in missing}

    def chunks(path, digest):
        name, offset = f"{TENANT}/uploads/{uuid.uuid4()}/blobs/{digest.hash}/{digest.size_bytes}", 0
        with path.open("rb") as file:
            while data := file.read(CHUNK):
                last = offset + len(data) == digest.size_bytes
                yield bs.WriteRequest(resource_name=name, write_offset=offset, data=data, finish_write=last)
                offset += len(data)

    for path, digest in nodes:
        if digest.hash in wanted:
            bytestream_pb2_grpc.ByteStreamStub(channel).Write(chunks(path, digest))
    return res.Source(manifest=res.Source.Manifest(files=[blobs.FileNode(path=p.name, digest=d) for p, d in nodes]))


def main(model_dir, calibration, output, server="127.0.0.1:7433"):
    channel = grpc.insecure_channel(server)
    files = [p for p in sorted(pathlib.Path(model_dir).iterdir()) if p.suffix in (".json", ".safetensors")]
    model = model_service_pb2_grpc.ModelServiceStub(channel).CreateModel(
        ms.CreateModelRequest(parent=TENANT, source=upload(channel, files)), timeout=SECONDS)
    dataset = dataset_service_pb2_grpc.DatasetServiceStub(channel).CreateDataset(
        ds.CreateDatasetRequest(parent=TENANT, source=upload(channel, [pathlib.Path(calibration)])), timeout=SECONDS)
    jobs = quantization_service_pb2_grpc.QuantizationServiceStub(channel)
    job = jobs.CreateQuantizationJob(qs.CreateQuantizationJobRequest(
        parent=TENANT, request_id=str(uuid.uuid4()), spec=spec.QuantizationSpec(
            model=model.name, calibration_dataset=dataset.name, gptq=spec.Gptq(),
            scheme=spec.WeightScheme(bits=4, group_size=128),
            calibration=spec.Calibration(samples=16, sequence_length=256))), timeout=SECONDS)
    for event in jobs.WatchQuantizationJob(qs.WatchRequest(name=job.name)):
        if event.HasField("block"):
            print(f"{event.block.name}: {event.block.seconds:.1f} s")
        elif event.HasField("snapshot"):
            job = event.snapshot
    if job.state != qs.QuantizationJob.SUCCEEDED:
        sys.exit(f"{job.name}: {qs.QuantizationJob.State.Name(job.state)}: {job.error.message}")
    folder = pathlib.Path(output)
    folder.mkdir(parents=True)
    for node in jobs.ListArtifacts(res.ListRequest(parent=job.name, page_size=1000), timeout=SECONDS).files:
        name = f"{TENANT}/blobs/{node.digest.hash}/{node.digest.size_bytes}"
        data = b"".join(part.data for part in bytestream_pb2_grpc.ByteStreamStub(channel).Read(
            bs.ReadRequest(resource_name=name)))
        assert hashlib.sha256(data).hexdigest() == node.digest.hash, node.path
        (folder / node.path).write_bytes(data)
    print(f"{job.name}: {len(list(folder.iterdir()))} files in {folder}")


if __name__ == "__main__":
    main(*sys.argv[1:])
