// Plans of the kernel for sm_90a: conv_hopper.cu.
#include "conv_cost.h"

namespace fastops {

bool hopper_serves(const ConvParams&, ConvPass) { return false; }

ConvPlan hopper_plan(const ConvParams& p, ConvPass pass, const Device& device) {
  return direct_plan(p, pass, device);
}

}  // namespace fastops
