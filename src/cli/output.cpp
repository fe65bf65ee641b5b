#include "cli/output.h"

#include "base/check.h"
#include "cli/text.h"

#include <fmt/format.h>
#include <google/protobuf/descriptor.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstdlib>

namespace strata::cli {

namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

std::string lower(std::string_view text) {
    std::string out(text);
    std::transform(out.begin(), out.end(), out.begin(), [](unsigned char c) { return std::tolower(c); });
    return out;
}

Json field_to_json(const Message & message, const FieldDescriptor & field, int index) {
    const Reflection & reflection = *message.GetReflection();
    const bool repeated = index >= 0;
    switch (field.cpp_type()) {
#define STRATA_SCALAR(CASE, GET)                                                                                       \
    case FieldDescriptor::CASE:                                                                                        \
        return repeated ? reflection.GetRepeated##GET(message, &field, index) : reflection.Get##GET(message, &field)
        STRATA_SCALAR(CPPTYPE_INT32, Int32);
        STRATA_SCALAR(CPPTYPE_INT64, Int64);
        STRATA_SCALAR(CPPTYPE_UINT32, UInt32);
        STRATA_SCALAR(CPPTYPE_UINT64, UInt64);
        STRATA_SCALAR(CPPTYPE_DOUBLE, Double);
        STRATA_SCALAR(CPPTYPE_FLOAT, Float);
        STRATA_SCALAR(CPPTYPE_BOOL, Bool);
        STRATA_SCALAR(CPPTYPE_STRING, String);
#undef STRATA_SCALAR
    case FieldDescriptor::CPPTYPE_ENUM:
        return (repeated ? reflection.GetRepeatedEnum(message, &field, index) : reflection.GetEnum(message, &field))
            ->name();
    case FieldDescriptor::CPPTYPE_MESSAGE:
        if (repeated) return to_json(reflection.GetRepeatedMessage(message, &field, index));
        return reflection.HasField(message, &field) ? to_json(reflection.GetMessage(message, &field)) : Json(nullptr);
    }
    return nullptr;
}

std::string styled(bool color, Style style, std::string_view text) {
    if (!color || style == Style::kPlain || text.empty()) return std::string(text);
    const char * code = "";
    switch (style) {
    case Style::kPlain:
        break;
    case Style::kBold:
        code = "1";
        break;
    case Style::kDim:
        code = "2";
        break;
    case Style::kRed:
        code = "31";
        break;
    case Style::kGreen:
        code = "32";
        break;
    case Style::kYellow:
        code = "33";
        break;
    case Style::kCyan:
        code = "36";
        break;
    }
    return fmt::format("\x1b[{}m{}\x1b[0m", code, text);
}

int out_errno = 0; // of the first write to stdout that failed

void write(FILE * file, std::string_view text) {
    const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size() && std::fflush(file) == 0;
    if (!written && file == stdout && out_errno == 0) out_errno = errno;
}

void write_line(FILE * file, std::string text) {
    text += '\n';
    write(file, text);
}

// Names of models and messages of errors may hold any bytes; JSON must be UTF-8.
std::string dump(const Json & json, int indent) {
    return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

} // namespace

Output Output::detect(bool json, bool no_color) {
    const char * no_color_variable = std::getenv("NO_COLOR");
    const char * term = std::getenv("TERM");
    const bool dumb = term == nullptr || std::string_view(term) == "dumb";
    const bool color = !no_color && !dumb && (no_color_variable == nullptr || *no_color_variable == '\0');
    Output output;
    output.json = json;
    output.out_terminal = ::isatty(STDOUT_FILENO) == 1;
    output.err_terminal = ::isatty(STDERR_FILENO) == 1;
    output.out_color = color && output.out_terminal;
    output.err_color = color && output.err_terminal;
    return output;
}

void Output::text(std::string_view text) const {
    write(stdout, text);
}

void Output::line(std::string_view text) const {
    write_line(stdout, std::string(text));
}

void Output::note(std::string_view text) const {
    if (!json) write_line(stderr, err_style(Style::kDim, text));
}

void Output::document(const Json & value) const {
    write_line(stdout, dump(value, 2));
}

void Output::json_line(const Json & value) const {
    write_line(stdout, dump(value, -1));
}

void Output::error(const absl::Status & status) const {
    const std::string message(status.message().data(), status.message().size());
    if (json) {
        json_line({{"error", {{"code", lower(absl::StatusCodeToString(status.code()))}, {"message", message}}}});
    } else {
        write_line(stderr, err_style(Style::kRed, "strata:") + " " + safe_text(message, true));
    }
}

absl::Status Output::written() {
    if (std::fflush(stdout) != 0 && out_errno == 0) out_errno = errno;
    return out_errno == 0 ? absl::OkStatus() : errno_status(out_errno, "write to", "the standard output");
}

std::string Output::out_style(Style style, std::string_view text) const {
    return styled(out_color, style, text);
}

std::string Output::err_style(Style style, std::string_view text) const {
    return styled(err_color, style, text);
}

Json to_json(const Message & message) {
    Json json = Json::object();
    const auto * descriptor = message.GetDescriptor();
    for (int i = 0; i < descriptor->field_count(); ++i) {
        const FieldDescriptor & field = *descriptor->field(i);
        if (field.is_repeated()) {
            Json list = Json::array();
            const int size = message.GetReflection()->FieldSize(message, &field);
            for (int index = 0; index < size; ++index) list.push_back(field_to_json(message, field, index));
            json[field.json_name()] = std::move(list);
        } else {
            json[field.json_name()] = field_to_json(message, field, -1);
        }
    }
    return json;
}

void Table::add(std::vector<Cell> row) {
    STRATA_CHECK(row.size() == columns_.size());
    for (Cell & cell : row) cell.text = safe_text(cell.text);
    rows_.push_back(std::move(row));
}

std::string Table::render(const Output & output) const {
    std::vector<size_t> widths;
    for (const Column & column : columns_) widths.push_back(display_width(column.title));
    for (const auto & row : rows_) {
        for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], display_width(row[i].text));
    }

    std::string out;
    const auto append = [&](size_t i, std::string_view text, Style style) {
        const std::string padding(widths[i] - display_width(text), ' ');
        const bool right = columns_[i].align == Align::kRight;
        if (right) out += padding;
        out += output.out_style(style, text);
        if (!right) out += padding;
        out += "  ";
    };
    const auto end_line = [&out] {
        while (out.ends_with(' ')) out.pop_back();
        out += '\n';
    };
    for (size_t i = 0; i < columns_.size(); ++i) append(i, columns_[i].title, Style::kDim);
    end_line();
    for (const auto & row : rows_) {
        for (size_t i = 0; i < row.size(); ++i) append(i, row[i].text, row[i].style);
        end_line();
    }
    return out;
}

} // namespace strata::cli
