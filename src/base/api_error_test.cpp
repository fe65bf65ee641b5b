#include "base/api_error.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace strata {
namespace {

TEST(ApiError, HasTheShapeOfTheApi) {
    const auto openai = nlohmann::json::parse(error_body("/v1/chat/completions", 404, "no \"x\""));
    EXPECT_EQ(openai["error"]["message"], "no \"x\"");
    EXPECT_EQ(openai["error"]["code"], 404);
    EXPECT_EQ(openai["error"]["type"], "not_found_error");
    EXPECT_TRUE(openai["error"]["param"].is_null());
    const auto anthropic = nlohmann::json::parse(error_body("/v1/messages/count_tokens", 503, "busy"));
    EXPECT_EQ(anthropic["type"], "error");
    EXPECT_EQ(anthropic["error"]["type"], "overloaded_error");
    EXPECT_EQ(anthropic["error"]["message"], "busy");
}

TEST(ApiError, AGivenTypeIsOpenAIsOnly) {
    const auto openai =
        nlohmann::json::parse(error_body("/completion", 400, "x", {.type = "exceed_context_size_error"}));
    EXPECT_EQ(openai["error"]["type"], "exceed_context_size_error");
    const auto anthropic =
        nlohmann::json::parse(error_body("/v1/messages", 400, "x", {.type = "exceed_context_size_error"}));
    EXPECT_EQ(anthropic["error"]["type"], "invalid_request_error");
}

TEST(ApiError, TheFieldAtFaultIsOpenAIsParam) {
    const absl::Status status = about_field(absl::InvalidArgumentError("n must be 1"), "n");
    const std::string field = field_of(status);
    EXPECT_EQ(nlohmann::json::parse(error_body("/completion", 400, "x", {.param = field}))["error"]["param"], "n");
    EXPECT_EQ(field_of(absl::InvalidArgumentError("x")), "");
    EXPECT_TRUE(about_field(absl::OkStatus(), "n").ok());
}

TEST(ApiError, BytesThatAreNotUtf8AreReplaced) {
    EXPECT_FALSE(nlohmann::json::parse(error_body("/", 400, "\xff\xfe"), nullptr, false).is_discarded());
}

} // namespace
} // namespace strata
