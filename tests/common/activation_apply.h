// Applies one function to an array; built once per instruction set by activation.cpp.

#define FASTNEST_TEST_FUNCTION(label, expression) \
  if (function == label) {                        \
    for (int64_t i = 0; i < count; i += kLanes) { \
      const Vec x = load(data + i);               \
      store(data + i, expression);                \
    }                                             \
    return true;                                  \
  }
#define FASTNEST_TEST_ACTIVATION(label, kind)                                                  \
  FASTNEST_TEST_FUNCTION(label ".value", activate<Activation::kind>(x))                        \
  FASTNEST_TEST_FUNCTION(label ".derivative", derivative<Activation::kind>(x))                 \
  FASTNEST_TEST_FUNCTION(label ".both_value", value_and_derivative<Activation::kind>(x).value) \
  FASTNEST_TEST_FUNCTION(label ".both_derivative", value_and_derivative<Activation::kind>(x).derivative)

static bool apply(const std::string& function, float* data, int64_t count) {
  FASTNEST_TEST_FUNCTION("sigmoid", sigmoid(x).value)
  FASTNEST_TEST_ACTIVATION("identity", kIdentity)
  FASTNEST_TEST_ACTIVATION("relu", kRelu)
  FASTNEST_TEST_ACTIVATION("leaky_relu", kLeakyRelu)
  FASTNEST_TEST_ACTIVATION("tanh", kTanh)
  FASTNEST_TEST_ACTIVATION("silu", kSilu)
  FASTNEST_TEST_ACTIVATION("gelu", kGelu)
  FASTNEST_TEST_ACTIVATION("gelu_tanh", kGeluTanh)
  return false;
}

#undef FASTNEST_TEST_ACTIVATION
#undef FASTNEST_TEST_FUNCTION
