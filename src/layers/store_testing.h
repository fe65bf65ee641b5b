#pragma once

#include "base/temp_folder_testing.h"
#include "layers/store.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

// What the tests of the store share. Layers here are arbitrary bytes: the store does not look into them.
namespace strata::layers::testing {

using strata::testing::TempFolder;

// A model as its layers' bytes: "head", "embedding", blocks, "tail". Each layer but the head has two tensors.
struct FakeModel {
    std::vector<std::string> layers;

    // `seed` makes all layers differ from another seed's.
    static FakeModel make(const std::string & seed, size_t blocks = 2, size_t layer_bytes = 1000);
    ModelIndex index() const;
};

Lineage fake_lineage(const std::string & origin = "fake.gguf");

// Writes the layers and commits the model, as an import does.
absl::StatusOr<Digest> write_model(Store & store, const std::string & name, const FakeModel & model,
                                   const Lineage & lineage = fake_lineage());

ModelName model_name(const std::string & text);
std::string read_file(const std::filesystem::path & path);
void write_file(const std::filesystem::path & path, const std::string & bytes);
// Names of what is in a folder, sorted.
std::vector<std::string> entries(const std::filesystem::path & folder);

// What verify() says about the whole store, as one text; empty when all is well.
std::string problems(const Store & store);

// "OK", or the error as text: EXPECT_EQ(status_text(...), "OK") prints what went wrong.
inline std::string status_text(const absl::Status & status) {
    return status.ToString();
}
template <typename T>
std::string status_text(const absl::StatusOr<T> & value) {
    return value.status().ToString();
}

#define ASSERT_OK(expression) ASSERT_EQ(::strata::layers::testing::status_text(expression), "OK")
#define EXPECT_OK(expression) EXPECT_EQ(::strata::layers::testing::status_text(expression), "OK")

} // namespace strata::layers::testing
