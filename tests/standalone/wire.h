// What executable.py writes to the executable and reads back: numbers of 8 bytes in the machine's order, then bytes.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

namespace wire {

class Reader {
 public:
  template <class T>
  T number() {
    T value;
    static_assert(sizeof(T) == 8);
    bytes(&value, sizeof(value));
    return value;
  }
  void bytes(void* to, int64_t count) {
    const auto wanted = static_cast<size_t>(count);
    if (wanted > 0 && std::fread(to, 1, wanted, stdin) != wanted) std::exit(std::feof(stdin) ? 0 : 1);
  }
};

class Writer {
 public:
  template <class T>
  void number(T value) {
    static_assert(sizeof(T) == 8);
    bytes(&value, sizeof(value));
  }
  void bytes(const void* from, int64_t count) {
    const auto wanted = static_cast<size_t>(count);
    if (wanted > 0 && std::fwrite(from, 1, wanted, stdout) != wanted) std::exit(1);
  }
};

inline void read_any(Reader& from, int64_t& to) { to = from.number<int64_t>(); }
inline void read_any(Reader& from, double& to) { to = from.number<double>(); }
inline void read_any(Reader& from, bool& to) { to = from.number<int64_t>() != 0; }
inline void read_any(Reader& from, std::string& to) {
  to.resize(static_cast<size_t>(from.number<int64_t>()));
  from.bytes(to.data(), static_cast<int64_t>(to.size()));
}
template <class T>
void read_any(Reader& from, T& to) {
  read(from, to);
}
template <class T>
void read_any(Reader& from, std::optional<T>& to) {
  if (from.number<int64_t>() != 0) read_any(from, to.emplace());
}
template <class T>
void read_any(Reader& from, std::vector<T>& to) {
  to.resize(static_cast<size_t>(from.number<int64_t>()));
  for (T& one : to) read(from, one);
}

template <class T>
void write_any(Writer& to, const T& from) {
  write(to, from);
}
template <class T>
void write_any(Writer& to, const std::vector<T>& from) {
  to.number(static_cast<int64_t>(from.size()));
  for (const T& one : from) write(to, one);
}

}  // namespace wire
