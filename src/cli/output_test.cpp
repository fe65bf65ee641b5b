#include "cli/output.h"
#include "cli/progress.h"
#include "cli/text.h"
#include "strata/v1/deployments.pb.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace strata::cli {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;

TEST(Json, HasAllFieldsAndPlainNumbers) {
    v1::ListDeploymentsResponse message;
    v1::Deployment & deployment = *message.add_deployments();
    deployment.set_name("m:latest");
    deployment.set_state(v1::Deployment::STATE_READY);
    deployment.set_engine_pid(int64_t{1} << 40);
    const Json json = to_json(message)["deployments"][0];
    EXPECT_EQ(json["name"], "m:latest");
    EXPECT_EQ(json["state"], "STATE_READY");
    EXPECT_EQ(json["enginePid"], int64_t{1} << 40);
    EXPECT_EQ(json["lastError"], "");
    EXPECT_TRUE(json["engine"].is_null());

    deployment.mutable_engine()->add_slots()->set_busy(true);
    EXPECT_EQ(to_json(deployment)["engine"]["slots"][0]["busy"], true);
}

TEST(Table, AlignsByWhatIsSeen) {
    use_utf8_locale();
    Table table({{"NAME"}, {"SIZE", Table::Align::kRight}, {"NOTE"}});
    table.add({"日本", "1", "x"});
    table.add({"a\x1b[2Jb", "1000", ""});
    const Output plain;
    EXPECT_EQ(table.render(plain), "NAME       SIZE  NOTE\n"
                                   "日本          1  x\n"
                                   "a\\x1b[2Jb  1000\n");
    Output colored;
    colored.out_color = true;
    EXPECT_THAT(table.render(colored), HasSubstr("\x1b[2mNAME\x1b[0m       \x1b[2mSIZE"));
}

TEST(RateMeter, FollowsTheLastSeconds) {
    RateMeter meter;
    const RateMeter::Time start{};
    EXPECT_EQ(meter.per_second(), std::nullopt);
    meter.add(start, 0);
    EXPECT_EQ(meter.per_second(), std::nullopt);
    for (int i = 1; i <= 10; ++i) meter.add(start + seconds(i), 100 * i);
    EXPECT_NEAR(*meter.per_second(), 100, 1);
    for (int i = 1; i <= 10; ++i) meter.add(start + seconds(10 + i), 1000 + 10 * i); // slower now
    EXPECT_NEAR(*meter.per_second(), 10, 1);
    meter.add(start + seconds(30), 5); // begins anew
    EXPECT_EQ(meter.per_second(), std::nullopt);
}

TEST(Progress, RendersWhatThereIsRoomFor) {
    use_utf8_locale();
    const Output plain;
    ProgressView view{"importing model", 50'000'000, 100'000'000, true, 10e6, 0};
    EXPECT_EQ(render_progress(view, 100, plain),
              "importing model  ━━━━━━━━━━━━━━━━━──────────────────   50%  50.0 MB of 100 MB  10.0 MB/s  0:05 left");
    EXPECT_EQ(render_progress(view, 40, plain), "importing model  ━━━━━━━━────────   50%");
    for (size_t columns = 0; columns < 200; ++columns) {
        EXPECT_LE(display_width(render_progress(view, columns, plain)), columns == 0 ? 0 : columns - 1);
    }

    view.done = view.total + 7; // more than was said
    EXPECT_THAT(render_progress(view, 100, plain), HasSubstr("100%"));
    view.total = 0;
    EXPECT_THAT(render_progress(view, 100, plain), HasSubstr("100 MB  10.0 MB/s"));
    view.label = "\x1b[2J";
    EXPECT_THAT(render_progress(view, 100, plain), HasSubstr("\\x1b[2J"));
}

class FakeClock final : public Clock {
public:
    std::chrono::steady_clock::time_point now() const override { return time; }
    std::chrono::system_clock::time_point wall() const override { return {}; }
    std::chrono::steady_clock::time_point time;
};

// How often a bar is drawn when an operation of `length` reports every millisecond.
size_t draws(milliseconds length) {
    FakeClock clock;
    Output output;
    output.err_terminal = true;
    ::testing::internal::CaptureStderr();
    {
        Progress progress(output, clock);
        for (milliseconds t{0}; t < length; t += milliseconds(1)) {
            clock.time += milliseconds(1);
            progress.update("working", static_cast<uint64_t>(t.count()), static_cast<uint64_t>(length.count()));
        }
    }
    const std::string text = ::testing::internal::GetCapturedStderr();
    EXPECT_TRUE(text.empty() || text.ends_with("\r\x1b[K")); // cleaned up
    size_t count = 0;
    for (size_t at = text.find("working"); at != std::string::npos; at = text.find("working", at + 1)) ++count;
    return count;
}

TEST(Progress, IsDrawnAtMostTenTimesASecondAndNotForAMoment) {
    EXPECT_EQ(draws(milliseconds(250)), 0);
    EXPECT_GE(draws(seconds(3)), 20);
    EXPECT_LE(draws(seconds(3)), 30);
}

TEST(Progress, WithoutATerminalItIsAFewPlainLines) {
    FakeClock clock;
    const Output output;
    ::testing::internal::CaptureStderr();
    {
        Progress progress(output, clock);
        for (int t = 0; t < 12'000; ++t) {
            clock.time += milliseconds(1);
            progress.update("working", t, 12'000);
        }
    }
    const std::string text = ::testing::internal::GetCapturedStderr();
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3) << text; // after 2, 7 and 12 seconds
    EXPECT_EQ(text.find('\x1b'), std::string::npos);
}

} // namespace
} // namespace strata::cli
