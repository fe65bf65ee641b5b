#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size);

// What a fuzzer begins with, and what it once found.
TEST(STRATA_FUZZER, has_no_finding_in_its_cases) {
    int cases = 0;
    for (const auto & entry : std::filesystem::directory_iterator(STRATA_CASES)) {
        std::cout << entry.path().filename().string() << std::endl; // before what may end here
        std::ifstream file(entry.path(), std::ios::binary);
        const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
        EXPECT_EQ(LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t *>(bytes.data()), bytes.size()), 0);
        ++cases;
    }
    EXPECT_GT(cases, 0);
}
