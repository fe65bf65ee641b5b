// The store beside the tool that people use on OCI layouts; `make test` installs it.
#include "layers/store.h"
#include "layers/store_testing.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <sys/wait.h>

#include <cstdlib>

namespace strata::layers::testing {
namespace {

using ::testing::HasSubstr;

struct Output {
    int exit_code = -1;
    std::string text;
};

Output run(const std::string & command) {
    Output output;
    FILE * pipe = ::popen((command + " 2>&1").c_str(), "r");
    if (pipe == nullptr) return output;
    char buffer[4096];
    for (size_t got = 0; (got = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) output.text.append(buffer, got);
    const int status = ::pclose(pipe);
    output.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    return output;
}

class SkopeoTest : public ::testing::Test {
protected:
    void SetUp() override {
        ASSERT_EQ(run("skopeo --version").exit_code, 0) << "install skopeo (scripts/install-deps.sh does)";
        auto opened = Store::open(path("store"));
        ASSERT_OK(opened);
        store_ = *std::move(opened);
        const auto digest = write_model(*store_, "org/fake:q4_1", FakeModel::make("a"));
        ASSERT_OK(digest);
        digest_ = *digest;
    }
    std::string path(const std::string & name) const { return (folder_.path() / name).native(); }

    TempFolder folder_;
    std::unique_ptr<Store> store_;
    Digest digest_;
};

TEST_F(SkopeoTest, InspectGivesTheManifestAsItIs) {
    const Output output = run(fmt::format("skopeo inspect --raw oci:{}:org/fake:q4_1", path("store")));
    ASSERT_EQ(output.exit_code, 0) << output.text;
    EXPECT_EQ(Digest::of(output.text), digest_);
    EXPECT_THAT(output.text, HasSubstr("application/vnd.cncf.model.manifest.v1+json"));
}

TEST_F(SkopeoTest, TheLineageIsAReferrerThatIsCopiedByItsTag) {
    const std::string tag = "sha256-" + digest_.hex();
    for (const std::string & name : {std::string("org/fake:q4_1"), tag}) {
        const Output copied =
            run(fmt::format("skopeo copy --all oci:{}:{} oci:{}:{}", path("store"), name, path("copy"), name));
        ASSERT_EQ(copied.exit_code, 0) << copied.text;
    }
    auto other = Store::open(path("other"));
    ASSERT_OK(other);
    ASSERT_OK((*other)->import_oci(path("copy"), "org/fake:q4_1", model_name("back"), nullptr));
    EXPECT_EQ((*other)->find(model_name("back"))->lineage->origin, fake_lineage().origin);
}

TEST_F(SkopeoTest, ACopyComesBackWithEqualDigests) {
    const Output copied =
        run(fmt::format("skopeo copy oci:{}:org/fake:q4_1 oci:{}:there", path("store"), path("copy")));
    ASSERT_EQ(copied.exit_code, 0) << copied.text;

    auto other = Store::open(path("other"));
    ASSERT_OK(other);
    const auto imported = (*other)->import_oci(path("copy"), "there", model_name("back"), nullptr);
    ASSERT_OK(imported);
    EXPECT_EQ(*imported, digest_);
    EXPECT_EQ(problems(**other), "");
    const auto model = (*other)->find(model_name("back"));
    ASSERT_OK(model);
    EXPECT_EQ(model->index->layers.size(), 5u);
    EXPECT_THAT(model->lineage->origin, HasSubstr("oci:"));
}

} // namespace
} // namespace strata::layers::testing
