#include <map>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "../cuda/device.cuh"

FASTRNN_NAMESPACE_BEGIN

namespace {

struct Described {
  std::mutex mutex;
  std::map<int, DeviceProperties> devices;
  std::map<std::string (*)(), std::string> names;  // each made once
  Residency resident_blocks;
};
// Never destroyed: Python, which answers, ends first.
Described& described() {
  static Described& instance = *new Described;
  return instance;
}

int& current_device() {
  thread_local int device = 0;
  return device;
}

const std::string& name_of(const KernelName& kernel) {
  const std::lock_guard<std::mutex> lock(described().mutex);
  std::string& name = described().names[kernel.name];
  if (name.empty()) name = kernel.name();
  return name;
}

}  // namespace

std::string instance(const char* of, const std::string& first) {
  return std::string(of) + "<" + first + ">";
}
std::string instance(const char* of, const std::string& first, const std::string& second) {
  return instance(of, first + ", " + second);
}
std::string instance(const char* of, const std::string& first, const std::string& second,
                     const std::string& third) {
  return instance(of, first + ", " + second + ", " + third);
}

std::vector<Recorded>& recorded() {
  thread_local std::vector<Recorded> launches;
  return launches;
}

void describe_device(int device, const DeviceProperties& properties) {
  const std::lock_guard<std::mutex> lock(described().mutex);
  described().devices[device] = properties;
}
void set_residency(Residency answer) {
  const std::lock_guard<std::mutex> lock(described().mutex);
  described().resident_blocks = std::move(answer);
}

DeviceGuard::DeviceGuard(int device, const char*) {
  recorded().clear();
  current_device() = device;
}

void record(const KernelName& kernel, const Launch& how, const void* argument) {
  if (how.cluster > 1) throw std::logic_error("fastrnn: a cluster was planned where there is none");
  Recorded entry;
  entry.kernel = &name_of(kernel), entry.how = how, entry.argument_bytes = kernel.argument_bytes;
  entry.argument.reset(new unsigned char[kernel.argument_bytes]);
  memcpy(entry.argument.get(), argument, kernel.argument_bytes);
  entry.parameters.reset(new void*(entry.argument.get()));
  recorded().push_back(std::move(entry));
}

int resident_blocks(const KernelName& kernel, const Launch& how, const char*) {
  Residency ask;
  {
    const std::lock_guard<std::mutex> lock(described().mutex);
    ask = described().resident_blocks;
  }
  return ask(current_device(), name_of(kernel), kernel.argument_bytes, int(how.threads),
             int(how.shared_bytes));
}

DeviceProperties device_properties(int device, const char* what) {
  const std::lock_guard<std::mutex> lock(described().mutex);
  const auto found = described().devices.find(device);
  if (found == described().devices.end() || !described().resident_blocks)
    throw std::runtime_error(std::string("fastrnn: ") + what + ": nobody has described device " +
                             std::to_string(device));
  return found->second;
}

FASTRNN_NAMESPACE_END
