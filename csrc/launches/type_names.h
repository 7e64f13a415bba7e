// What C++ calls the types that kernels are instances of: of them the names are made that NVRTC is
// asked for.
#pragma once

#include <string>

FASTRNN_NAMESPACE_BEGIN

template <class T>
struct TypeName;
template <class T>
std::string type_name() {
  return TypeName<T>::text();
}

inline std::string text(bool value) { return value ? "true" : "false"; }
inline std::string text(int value) { return std::to_string(value); }

#define FASTRNN_TYPE_NAME(Type)                 \
  template <>                                   \
  struct TypeName<Type> {                       \
    static std::string text() { return #Type; } \
  };

FASTRNN_TYPE_NAME(Tanh)
FASTRNN_TYPE_NAME(Relu)
FASTRNN_TYPE_NAME(Sigmoid)
FASTRNN_TYPE_NAME(Identity)
FASTRNN_TYPE_NAME(Lstm)
FASTRNN_TYPE_NAME(Gru)
FASTRNN_TYPE_NAME(GruResetBefore)
FASTRNN_TYPE_NAME(HalfMath)
FASTRNN_TYPE_NAME(BFloat16Math)
FASTRNN_TYPE_NAME(Tf32Math)
FASTRNN_TYPE_NAME(ScalarMath<float>)
FASTRNN_TYPE_NAME(ScalarMath<double>)
FASTRNN_TYPE_NAME(GlobalExchange)
FASTRNN_TYPE_NAME(ClusterExchange)

#undef FASTRNN_TYPE_NAME

template <class Activation>
struct TypeName<Vanilla<Activation>> {
  static std::string text() { return instance("Vanilla", type_name<Activation>()); }
};
template <class Cell, class Math, bool kProjected>
struct TypeName<ForwardPass<Cell, Math, kProjected>> {
  static std::string text() {
    return instance("ForwardPass", type_name<Cell>(), type_name<Math>(), fastrnn::text(kProjected));
  }
};
template <class Cell, class Math, bool kProjected>
struct TypeName<BackwardPass<Cell, Math, kProjected>> {
  static std::string text() {
    return instance("BackwardPass", type_name<Cell>(), type_name<Math>(),
                    fastrnn::text(kProjected));
  }
};
template <class Math>
struct TypeName<InitialPass<Math>> {
  static std::string text() { return instance("InitialPass", type_name<Math>()); }
};
template <class Math, int kBlocks, bool kWide>
struct TypeName<TileShape<Math, kBlocks, kWide>> {
  static std::string text() {
    return instance("TileShape", type_name<Math>(), fastrnn::text(kBlocks), fastrnn::text(kWide));
  }
};

FASTRNN_NAMESPACE_END
