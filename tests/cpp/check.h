// The little that these tests need: named cases, checks that go on after a failure, a main that counts both.
#pragma once

#include <atomic>
#include <cstdio>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace check {

struct Case {
    const char* name;
    void (*body)();
};

inline std::vector<Case>& cases() {
    static std::vector<Case> all;
    return all;
}

inline std::atomic<int>& checks() {
    static std::atomic<int> count{0};
    return count;
}

inline std::atomic<int>& failures() {
    static std::atomic<int> count{0};
    return count;
}

struct Register {
    Register(const char* name, void (*body)()) { cases().push_back({name, body}); }
};

inline void that(bool holds, const char* expression, const char* file, int line) {
    ++checks();
    if (holds) return;
    ++failures();
    std::fprintf(stderr, "%s:%d: expected %s\n", file, line, expression);
}

// Whether the call throws std::invalid_argument whose text says what was expected, what was found and what to do.
inline bool refuses(const std::function<void()>& call) {
    try {
        call();
    } catch (const std::invalid_argument& error) {
        const std::string text = error.what();
        const auto found = text.find("; found ");
        return text.starts_with("expected ") && found != std::string::npos &&
               text.find("; ", found + 2) != std::string::npos;
    }
    return false;
}

inline int run_all() {
    for (const Case& test : cases()) {
        const int checks_before = checks();
        const int failures_before = failures();
        try {
            test.body();
        } catch (const std::exception& error) {
            ++failures();
            std::fprintf(stderr, "%s: unexpected exception: %s\n", test.name, error.what());
        }
        if (checks() == checks_before) {
            ++failures();
            std::fprintf(stderr, "%s: checked nothing\n", test.name);
        }
        std::printf("%s %s\n", failures() == failures_before ? "ok  " : "FAIL", test.name);
    }
    std::printf("%d checks, %d failures\n", checks().load(), failures().load());
    return failures() == 0 && !cases().empty() ? 0 : 1;
}

}  // namespace check

#define TEST(name)                                             \
    static void name();                                        \
    static const check::Register register_##name(#name, name); \
    static void name()

#define CHECK(expression) check::that((expression), #expression, __FILE__, __LINE__)
