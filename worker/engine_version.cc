#include "worker/engine_version.h"

namespace ptq {

const char* EngineVersion() { return PTQ_ENGINE_VERSION; }

}  // namespace ptq
