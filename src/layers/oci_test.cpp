#include "layers/catalog.h"
#include "layers/oci.h"
#include "layers/store_testing.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

namespace strata::layers::oci {
namespace {

using layers::testing::status_text;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string digest_text(const std::string & of) {
    return Digest::of(of).to_string();
}

Descriptor entry(const std::string & of, const std::string & name) {
    Descriptor descriptor;
    descriptor.media_type = kMediaManifest;
    descriptor.digest = Digest::of(of);
    descriptor.size = of.size();
    if (!name.empty()) descriptor.annotations[kAnnotationRefName] = name;
    return descriptor;
}

TEST(Oci, AManifestReadsBackAsItWasWritten) {
    Manifest manifest;
    manifest.artifact_type = kArtifactModel;
    manifest.config = entry("config", "");
    manifest.layers = {entry("one", "x"), entry("two", "")};
    manifest.subject = entry("subject", "");
    const std::string text = to_json(manifest);
    const auto read = parse_manifest(text, "m");
    ASSERT_OK(read);
    EXPECT_EQ(to_json(*read), text);
    EXPECT_EQ(read->layers[0].annotation(kAnnotationRefName), "x");
    EXPECT_EQ(read->subject->digest, Digest::of("subject"));
}

TEST(Oci, HostileDocumentsAreRefusedWithTheField) {
    const auto index_with = [](const std::string & entry_json) {
        return R"({"schemaVersion":2,"manifests":[)" + entry_json + "]}";
    };
    const std::string good = R"("mediaType":"a","size":1,"digest":")" + digest_text("x") + '"';
    ASSERT_OK(parse_index(index_with("{" + good + "}"), "i"));

    const std::pair<std::string, std::string> cases[] = {
        {"", "not valid JSON"},
        {"{", "not valid JSON"},
        {"[]", "not a JSON object"},
        {"null", "not a JSON object"},
        {"{\"schemaVersion\":2,\"manifests\":[]} trailing", "not valid JSON"},
        {R"({"schemaVersion":1,"manifests":[]})", "schemaVersion"},
        {R"({"schemaVersion":2,"manifests":{}})", "\"manifests\" is not an array"},
        {R"({"schemaVersion":2,"mediaType":"x","manifests":[]})", "mediaType"},
        {R"({"schemaVersion":2,"manifests":[],"manifests":[]})", "twice"},
        {index_with("7"), "entry 0 is not a JSON object"},
        {index_with("{" + good + R"(,"digest":"sha256:00"})"), "twice"},
        {index_with(R"({"mediaType":"a","size":1})"), "\"digest\" is missing"},
        {index_with(R"({"mediaType":"a","size":1,"digest":"sha256:../../../../etc/passwd"})"), "not a SHA-256 digest"},
        {index_with(R"({"mediaType":"a","size":1,"digest":7})"), "\"digest\" is not a string"},
        {index_with(R"({"mediaType":"a","size":-1,"digest":")" + digest_text("x") + "\"}"), "\"size\""},
        {index_with(R"({"mediaType":"a","size":1.5,"digest":")" + digest_text("x") + "\"}"), "\"size\""},
        {index_with(R"({"mediaType":"a","size":"1","digest":")" + digest_text("x") + "\"}"), "\"size\""},
        {index_with(R"({"mediaType":"a","size":99999999999999999999,"digest":")" + digest_text("x") + "\"}"),
         "\"size\""},
        {index_with(R"({"mediaType":"a\u001b","size":1,"digest":")" + digest_text("x") + "\"}"), "control characters"},
        {index_with("{" + good + R"(,"annotations":[]})"), "\"annotations\" is not an object"},
        {index_with("{" + good + R"(,"annotations":{"a":1}})"), "\"a\" is not a string"},
        {std::string(100, '[') + std::string(100, ']'), "nested deeper"},
        {index_with("{" + good + ",\"x\":\"\xff\"}"), "not valid JSON"},
    };
    for (const auto & [text, reason] : cases) {
        const auto read = parse_index(text, "index.json");
        EXPECT_EQ(read.status().code(), absl::StatusCode::kInvalidArgument) << text;
        EXPECT_THAT(status_text(read), HasSubstr(reason)) << text;
    }
}

TEST(Oci, ADocumentOfManyValuesIsBounded) {
    std::string text = R"({"schemaVersion":2,"manifests":[],"x":[0)";
    for (int i = 0; i < (9 << 20); ++i) text += ",0";
    text += "]}";
    EXPECT_THAT(status_text(parse_index(text, "index.json")), HasSubstr("values"));
}

TEST(Catalog, NamesMoveAndTakeTheirReferrersAlong) {
    Index index;
    const auto name = [](const char * text) { return *ModelName::parse(text); };
    catalog::set(index, name("a"), entry("one", ""), entry("lineage of one", ""));
    catalog::set(index, name("b"), entry("one", ""), entry("lineage of one", ""));
    EXPECT_THAT(catalog::names(index), ElementsAre(name("a"), name("b")));
    EXPECT_EQ(index.manifests.size(), 3u); // the names share the referrers

    catalog::set(index, name("a"), entry("two", ""), entry("lineage of two", ""));
    EXPECT_NE(catalog::find(index, referrers_tag(Digest::of("one"))), nullptr); // b still needs it
    EXPECT_TRUE(catalog::remove(index, name("b")));
    EXPECT_EQ(catalog::find(index, referrers_tag(Digest::of("one"))), nullptr);
    EXPECT_FALSE(catalog::remove(index, name("b")));
    EXPECT_EQ(catalog::find(index, "a:latest")->digest, Digest::of("two"));
}

TEST(Catalog, ForeignEntriesAreLeftAloneAndAreNoModels) {
    Index index;
    index.manifests = {entry("x", ""), entry("y", "Not A Name"), entry("z", "without-tag"), entry("w", "bad\n:tag")};
    EXPECT_THAT(catalog::names(index), ::testing::IsEmpty());
    catalog::set(index, *ModelName::parse("a"), entry("one", ""), std::nullopt);
    catalog::remove(index, *ModelName::parse("a"));
    EXPECT_EQ(index.manifests.size(), 4u);
}

} // namespace
} // namespace strata::layers::oci
