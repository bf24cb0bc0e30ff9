#pragma once
// The messages of errors, joined from parts, without torch.
//
// Ops check dozens of things. Were each list of parts a template's arguments, most of what is
// compiled of a binding would be its messages; so parts of one type share one function, and all
// lists another.

#include <initializer_list>
#include <sstream>
#include <stdexcept>

namespace fastseg {

// A reference to anything that has an operator<<, for the length of an expression.
class MessagePart {
 public:
  template <class T>
  MessagePart(const T& value) : value_(&value), write_(&write<T>) {}
  MessagePart(const char* text) : value_(text), write_(&write_text) {}

  friend std::ostream& operator<<(std::ostream& out, const MessagePart& part) {
    part.write_(out, part.value_);
    return out;
  }

 private:
  template <class T>
  static void write(std::ostream& out, const void* value) {
    out << *static_cast<const T*>(value);
  }
  static void write_text(std::ostream& out, const void* text) {
    out << static_cast<const char*>(text);
  }

  const void* value_;
  void (*write_)(std::ostream&, const void*);
};

[[noreturn, gnu::cold, gnu::noinline]] inline void fail(std::initializer_list<MessagePart> parts) {
  std::ostringstream message;
  for (const MessagePart& part : parts) message << part;
  throw std::runtime_error(message.str());
}

}  // namespace fastseg
