// The version of the numeric engine: part of every result's identity.
#ifndef PTQ_WORKER_ENGINE_VERSION_H_
#define PTQ_WORKER_ENGINE_VERSION_H_

namespace ptq {

// "0.1.0". Raised whenever results change.
const char* EngineVersion();

}  // namespace ptq

#endif  // PTQ_WORKER_ENGINE_VERSION_H_
