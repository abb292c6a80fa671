// The name of Json alone: the library's own header takes most of the time of a small file.
#ifndef PTQ_COMMON_JSON_FWD_H_
#define PTQ_COMMON_JSON_FWD_H_

#include <nlohmann/json_fwd.hpp>

namespace ptq {

// Objects keep their insertion order, so that what we write is stable and reads naturally.
using Json = nlohmann::ordered_json;

}  // namespace ptq

#endif  // PTQ_COMMON_JSON_FWD_H_
