// Wrong use, told in three parts: what was expected, what was found, what to do.
#pragma once

#include <stdexcept>
#include <string>

namespace nuwaxl {

[[noreturn]] inline void refuse(const std::string& expected, const std::string& found, const std::string& fix) {
    throw std::invalid_argument("expected " + expected + "; found " + found + "; " + fix);
}

inline void check_at_least_one(const char* name, long long value) {
    if (value < 1) refuse(std::string(name) + " of at least 1", std::to_string(value), "pass a larger number");
}

// "(first, second)". Appended to: GCC 12 warns of what it makes of `"(" + std::to_string(first)`.
inline std::string pair_text(long long first, long long second) {
    std::string text = "(";
    text += std::to_string(first);
    text += ", ";
    text += std::to_string(second);
    text += ")";
    return text;
}

}  // namespace nuwaxl
