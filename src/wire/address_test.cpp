#include "wire/address.h"

#include <gtest/gtest.h>

namespace strata::wire {
namespace {

TEST(Address, ParsesLists) {
    const auto list = parse_devices("a:1,[::1]:2/1,c", 3);
    ASSERT_TRUE(list.ok());
    ASSERT_EQ(list->size(), 3);
    EXPECT_EQ((*list)[2].to_string(), "c:3");
    for (const auto * text : {"", "a,", ",a", "a,,b"}) EXPECT_FALSE(parse_devices(text, 3).ok()) << text;
}

} // namespace
} // namespace strata::wire
