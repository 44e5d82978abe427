#pragma once

#include <string>
#include <vector>

struct StubFunction {
    std::string image;
    std::string entry;
    int shared_limit;
};

struct StubLaunch {
    std::string image;
    std::string entry;
    int shared_limit;
    unsigned grid;
    unsigned block;
    unsigned shared_bytes;
    void* stream;
    std::vector<long long> parameters;
};
