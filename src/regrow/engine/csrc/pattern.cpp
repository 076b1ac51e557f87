#include "pattern.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>

namespace regrow {
namespace {

constexpr size_t kBlockBytes = 32 * 1024;  // of L1, for the lines that one tile of one block reads
constexpr uint32_t kNowhere = ~0u;
constexpr size_t kShortRow = 8;            // weights a segment should have: loading and storing sums costs about 5

uint16_t bfloat16(float f) {  // nearest even
    uint32_t u;
    memcpy(&u, &f, 4);
    return f != f ? uint16_t((u >> 16) | 0x40) : uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

// weights.at(i) = values[k], converted
struct Weights {
    const void* values;
    WeightKind kind;
    void* to;
    // weights.at((i + m) * rows + r) = values[first[r] + m] for m < n: `rows` rows with equal positions, side by side
    void interleave(size_t i, const size_t* first, int rows, size_t n) const {
        if (!values)
            return;
        auto copy = [&](auto* at, const auto* from, auto convert) {
            for (int r = 0; r < rows; r++)
                for (size_t m = 0; m < n; m++)
                    at[(i + m) * rows + r] = convert(from[first[r] + m]);
        };
        auto same = [](auto value) { return value; };
        switch (kind) {
            case WeightKind::Float:
                return copy((float*)to, (const float*)values, same);
            case WeightKind::Double:
                return copy((double*)to, (const double*)values, same);
            case WeightKind::BFloat16:
                return copy((uint16_t*)to, (const float*)values, bfloat16);
        }
    }
    // loop(set), where set(i, k) makes weights.at(i) = values[k]: what kind they are is asked once for all of them
    template <class Loop>
    void each(Loop loop) const {
        if (!values)
            return loop([](size_t, size_t) {});
        switch (kind) {
            case WeightKind::Float:
                return loop([this](size_t i, size_t k) { ((float*)to)[i] = ((const float*)values)[k]; });
            case WeightKind::Double:
                return loop([this](size_t i, size_t k) { ((double*)to)[i] = ((const double*)values)[k]; });
            case WeightKind::BFloat16:
                return loop([this](size_t i, size_t k) { ((uint16_t*)to)[i] = bfloat16(((const float*)values)[k]); });
        }
    }
};

// Memory is kept from call to call, as every entry is written: a vector that grows again would be zeroed again.
template <class V>
void room_for(V& vector, size_t count) {
    if (vector.size() < count)
        vector.resize(count);
}

Weights room_for_weights(Packed& p, size_t count, const void* values, WeightKind kind) {
    if (values)
        room_for(p.weights, count + 1);
    return {values, kind, p.weights.data()};
}

}  // namespace

Pattern::Pattern(int out_, int in_, int taps_, const int64_t* indices, size_t count, bool keep_transposed)
    : out(out_), in(in_), taps(taps_), position_(count), start_(size_t(out_) + 1) {
    const int64_t length = int64_t(in) * taps, total = int64_t(out) * length;
    if (length > 65536)
        throw std::invalid_argument("a row of " + std::to_string(length) + " weights is wider than the engine's 65536");
    if (total > INT32_MAX)
        throw std::invalid_argument("a layer of " + std::to_string(total) +
                                    " weights is larger than the engine's 2^31");
    int64_t last = -1, o = 0, row_begin = 0;
    for (size_t k = 0; k < count; k++) {
        const int64_t i = indices[k];
        if (i <= last || i >= total)
            throw std::invalid_argument("indices[" + std::to_string(k) + "] = " + std::to_string(i) + " after " +
                                        std::to_string(last) + ": they must ascend and lie in [0, " +
                                        std::to_string(total) + ")");
        last = i;
        while (i >= row_begin + length)
            start_[++o] = uint32_t(k), row_begin += length;
        position_[k] = uint16_t(i - row_begin);
    }
    while (o < out)
        start_[++o] = uint32_t(count);
    all = int64_t(count) == total;
    if (out % 4 == 0 && count) {
        bool same = true;
        for (int r = 0; r < out && same; r++) {
            const int f = r / 4 * 4;
            same = row_count(r) == row_count(f) && std::equal(row(r), row(r) + row_count(r), row(f));
        }
        shared = same ? 4 : 1;
    }
    if (keep_transposed && !(all && in % 4 == 0))
        transpose();
}

Pattern Pattern::full(int out, int in, int taps) {
    Pattern p;
    p.out = out, p.in = in, p.taps = taps, p.is_full_ = true, p.all = true, p.shared = out % 4 == 0 ? 4 : 1;
    p.position_.resize(p.row_length());
    std::iota(p.position_.begin(), p.position_.end(), uint16_t(0));
    return p;
}

size_t Pattern::memory() const {
    return 2 * (position_.size() + transposed_output.size() + transposed_source.size()) +
           4 * (start_.size() + transposed_begin.size());
}

void Pattern::indices(int64_t* to) const {
    for (int o = 0; o < out; o++)
        for (size_t k = 0; k < row_count(o); k++)
            *to++ = int64_t(o) * row_length() + row(o)[k];
}

void Pattern::transpose() {
    const size_t count = position_.size();
    int blocks = int(count / 60000) + 1, block = 0;
    for (;; blocks++) {  // blocks of equally many rows, until each has fewer than 65536 weights
        block = (out + blocks - 1) / blocks;
        size_t most = 0;
        for (int o = 0; o < out; o += block)
            most = std::max<size_t>(most, start_[std::min(out, o + block)] - start_[o]);
        if (most <= 65536)
            break;
    }
    blocks = (out + block - 1) / block;
    transposed_blocks = blocks;
    transposed_begin.assign(size_t(blocks) * in + 2, 0);
    uint32_t* tally = transposed_begin.data() + 2;  // after the second pass, begin[i] is right
    for (int o = 0; o < out; o++)
        for (size_t k = 0; k < row_count(o); k++)
            tally[size_t(o / block) * in + row(o)[k]]++;
    std::partial_sum(tally, tally + size_t(blocks) * in, tally);
    transposed_output.resize(count), transposed_source.resize(count);
    for (int o = 0; o < out; o++)
        for (size_t k = 0; k < row_count(o); k++) {
            const uint32_t at = transposed_begin[size_t(o / block) * in + row(o)[k] + 1]++;
            transposed_output[at] = uint16_t(o),
            transposed_source[at] = uint16_t(start_[o] + k - start_[o / block * block]);
        }
    transposed_begin.pop_back();
}

int channels_per_block(int channels, size_t bytes_per_channel, size_t weights_per_row, size_t channel_lines) {
    int block = 1;
    while (block < channels && 2 * block * bytes_per_channel <= kBlockBytes + 4096)
        block *= 2;
    auto blocks = [&] { return (channels + block - 1) / block; };
    while (blocks() > 1 && weights_per_row < kShortRow * blocks() && 2 * block * channel_lines <= 65536)
        block *= 2;
    while (block > 1 && block * channel_lines > 65536)
        block /= 2;
    return std::min(block, channels);
}

void pack_forward(const Pattern& p, const RingShape& ring, const TapTable& table, int block, const void* values,
                  WeightKind kind, Packed& to) {
    const bool product = p.taps == 1 && ring.rows == 1;  // offsets in channels
    const int blocks = (p.in + block - 1) / block, rows = p.out / p.shared, width = block * p.taps;
    const size_t channel_lines = product ? 1 : ring.channel_bytes() / ring.line, entries = p.count() / p.shared;
    const int positions = product ? 1 : table.positions;
    to.begin.assign(size_t(blocks) * rows + 1, 0);
    for (int j = 0; j < rows; j++) {
        const uint16_t* row = p.row(j * p.shared);
        const size_t n = p.row_count(j * p.shared);
        size_t k = 0;
        for (int q = 0; q < blocks; q++) {
            const size_t from = k, end = size_t(q + 1) * width;
            k = q == blocks - 1
                    ? n
                    : size_t(std::lower_bound(row + k, row + n, end, [](uint16_t a, size_t e) { return a < e; }) - row);
            to.begin[size_t(q) * rows + j + 1] = uint32_t(k - from);
        }
    }
    std::partial_sum(to.begin.begin(), to.begin.end(), to.begin.begin());
    room_for(to.offsets, entries * positions + 1);
    const Weights weights = room_for_weights(to, entries * p.shared, values, kind);
    // line of each position inside its block
    std::vector<uint16_t> line(p.row_length() * positions);
    for (int v = 0; v < positions; v++)
        for (int c = 0; c < p.in; c++)
            for (int t = 0; t < p.taps; t++)
                line[v * p.row_length() + size_t(c) * p.taps + t] =
                    uint16_t((c % block) * channel_lines + (product ? 0 : table.lines[size_t(v) * p.taps + t]));
    for (int j = 0; j < rows; j++) {
        const int o = j * p.shared;
        const uint16_t* row = p.row(o);
        size_t first[4];
        for (int r = 0; r < p.shared; r++)
            first[r] = p.row_start(o + r);
        for (int q = 0; q < blocks; q++) {
            const uint32_t at = to.begin[size_t(q) * rows + j], n = to.begin[size_t(q) * rows + j + 1] - at;
            for (int v = 0; v < positions; v++)
                for (uint32_t m = 0; m < n; m++)
                    to.offsets[v * entries + at + m] = line[v * p.row_length() + row[m]];
            weights.interleave(at, first, p.shared, n);
            row += n;
            for (int r = 0; r < p.shared; r++)
                first[r] += n;
        }
    }
    const size_t channel_bytes = ring.channel_bytes();
    to.segments = {to.begin.data(),
                   blocks,
                   rows,
                   rows,
                   1,
                   p.shared,
                   to.offsets.data(),
                   entries,
                   product ? channel_bytes : size_t(ring.line),
                   block * channel_bytes,
                   to.weights.data(),
                   entries * p.shared};
}

Segments product_segments(const Pattern& p, const RingShape& ring, const void* values, WeightKind kind, Packed& to) {
    if (kind == WeightKind::BFloat16 && values) {
        room_for_weights(to, p.count(), values, kind).each([&](auto set) {
            for (size_t k = 0; k < p.count(); k++)
                set(k, k);
        });
        values = to.weights.data();
    }
    return {p.starts(), 1, p.out, 0, 1, 1, p.row(0), 0, ring.channel_bytes(), 0, values, p.count()};
}

void unpack_gradient(const Pattern& p, const Segments& s, const void* const* sums, int threads, bool is_double,
                     void* to) {
    auto move = [&](auto* out, auto type) {
        using S = decltype(type);
        for (int j = 0; j < s.rows; j++)
            for (int r = 0; r < s.shared; r++) {
                S* row = out + p.row_start(j * s.shared + r);
                for (int q = 0; q < s.blocks; q++) {
                    const uint32_t* begin = s.begin + size_t(q) * s.block_stride + size_t(j) * s.row_stride;
                    for (size_t at = begin[0]; at < begin[1]; at++, row++) {
                        S sum = 0;
                        for (int t = 0; t < threads; t++)
                            sum += ((const S*)sums[t])[at * s.shared + r];
                        *row = sum;
                    }
                }
            }
    };
    if (is_double)
        move((double*)to, double());
    else
        move((float*)to, float());
}

void pack_transposed(const Pattern& p, const RingShape& ring, const TapTable& table, const std::vector<int>& class_of,
                     int classes, int block, const void* values, WeightKind kind, Packed& to,
                     std::vector<Segments>& segments) {
    const int shared = p.all && p.in % 4 == 0 ? 4 : 1, rows = p.in / shared, blocks = (p.out + block - 1) / block;
    const size_t channel_lines = ring.channel_bytes() / ring.line, count = p.count() / shared;
    const size_t per_class = size_t(blocks) * rows;
    // of a position: its class and row, for block 0, and where its tap reads, for every ring position
    std::vector<uint32_t> slot(p.row_length());
    std::vector<uint16_t> line(p.row_length() * table.positions);
    for (size_t c = 0, i = 0; c < size_t(p.in); c++)
        for (int t = 0; t < p.taps; t++, i++) {
            slot[i] = c % shared ? kNowhere : uint32_t(class_of[t] * per_class + c / shared);
            for (int v = 0; v < table.positions; v++)
                line[v * p.row_length() + i] = uint16_t(table.lines[size_t(v) * p.taps + t]);
        }
    to.begin.assign(per_class * classes + 2, 0);
    uint32_t* tally = to.begin.data() + 2;
    auto visit = [&](auto use) {
        for (int o = 0; o < p.out; o++) {
            const uint16_t* row = p.row(o);
            const size_t n = p.row_count(o), first = size_t(o / block) * rows, channel = (o % block) * channel_lines;
            for (size_t k = 0; k < n; k++)
                if (slot[row[k]] != kNowhere)
                    use(channel, row[k], slot[row[k]] + first, p.row_start(o) + k);
        }
    };
    visit([&](size_t, uint16_t, size_t at, size_t) { tally[at]++; });
    std::partial_sum(tally, tally + per_class * classes, tally);
    room_for(to.offsets, count * table.positions + 1);
    room_for_weights(to, count * shared, values, kind).each([&](auto set) {
        visit([&](size_t channel, uint16_t position, size_t at, size_t k) {
            const uint32_t entry = to.begin[at + 1]++;
            for (int v = 0; v < table.positions; v++)
                to.offsets[v * count + entry] = uint16_t(channel + line[v * p.row_length() + position]);
            for (int r = 0; r < shared; r++)
                set(size_t(entry) * shared + r, k + size_t(r) * p.taps);
        });
    });
    segments.clear();
    for (int c = 0; c < classes; c++)
        segments.push_back({to.begin.data() + c * per_class, blocks, rows, rows, 1, shared, to.offsets.data(), count,
                            size_t(ring.line), block * ring.channel_bytes(), to.weights.data(), count * shared});
}

void pack_transposed_product(const Pattern& p, const RingShape& ring, const void* values, WeightKind kind, Packed& to,
                             std::vector<Segments>& segments) {
    const size_t count = p.count();
    const int block = (p.out + p.transposed_blocks - 1) / p.transposed_blocks;
    room_for_weights(to, count, values, kind).each([&](auto set) {
        for (int q = 0; q < p.transposed_blocks; q++) {
            const size_t first = p.row_start(q * block);
            for (uint32_t i = p.transposed_begin[size_t(q) * p.in]; i < p.transposed_begin[size_t(q + 1) * p.in]; i++)
                set(i, first + p.transposed_source[i]);
        }
    });
    segments.assign(1, {p.transposed_begin.data(), p.transposed_blocks, p.in, p.in, 1, 1, p.transposed_output.data(), 0,
                        ring.channel_bytes(), 0, to.weights.data(), count});
}

namespace {

constexpr int kBlock = 32;
int blocks_of(int channels) { return (channels + kBlock - 1) / kBlock; }

// `class_of`, `classes`: of the taps; `transposed`: rows of tiles are inputs
void fill_tiles(const Pattern& p, const TapTable& table, const std::vector<int>& class_of, int classes, bool transposed,
                const float* values, PackedTiles& to) {
    const int row_blocks = blocks_of(transposed ? p.in : p.out), column_blocks = blocks_of(transposed ? p.out : p.in);
    const size_t per_tap = size_t(row_blocks) * column_blocks * kBlock * kBlock;
    std::vector<int> number(p.taps), count(classes);  // of a tap in its class
    for (int t = 0; t < p.taps; t++)
        number[t] = count[class_of[t]]++;
    std::vector<size_t> first(classes);
    uint16_t* data = nullptr;
    if (values) {
        room_for(to.data, per_tap * p.taps + 32);  // 64 bytes more, to align
        data = (uint16_t*)((uintptr_t(to.data.data()) + 63) / 64 * 64);
        memset(data, 0, per_tap * p.taps * sizeof(uint16_t));
    }
    to.lines.clear(), to.weights.clear();
    to.lines.reserve(size_t(table.positions) * p.taps);
    size_t taps = 0;
    for (int c = 0; c < classes; taps += count[c++]) {
        first[c] = taps * per_tap;
        to.weights.push_back(
            {data ? data + first[c] : nullptr, row_blocks, column_blocks, count[c], to.lines.data() + to.lines.size()});
        for (int v = 0; v < table.positions; v++)
            for (int t = 0; t < p.taps; t++)
                if (class_of[t] == c)
                    to.lines.push_back(table.lines[size_t(v) * p.taps + t]);
    }
    if (!values)
        return;
    // of a position: its place in the tiles of output 0, and how far on those of the next block of outputs lie
    std::vector<size_t> place(p.row_length());
    std::vector<uint32_t> further(p.row_length());
    for (int i = 0, at = 0; i < p.in; i++)
        for (int t = 0; t < p.taps; t++, at++) {
            const size_t block = size_t(count[class_of[t]]) * kBlock * kBlock;  // a row block, a column block, all taps
            further[at] = uint32_t(transposed ? block : column_blocks * block);
            place[at] = first[class_of[t]] + size_t(number[t]) * kBlock * kBlock +
                        i / kBlock * (transposed ? column_blocks * block : block) + i % kBlock * (transposed ? kBlock : 1);
        }
    for (int o = 0; o < p.out; o++) {
        const uint16_t* row = p.row(o);
        const float* w = values + p.row_start(o);
        uint16_t* to_output = data + o % kBlock * (transposed ? 1 : kBlock);
        for (size_t k = 0; k < p.row_count(o); k++)
            to_output[place[row[k]] + size_t(o / kBlock) * further[row[k]]] = bfloat16(w[k]);
    }
}

}  // namespace

size_t tile_count(const Pattern& p) { return size_t(blocks_of(p.out)) * blocks_of(p.in) * p.taps * kBlock * kBlock; }

void pack_tiles(const Pattern& p, const TapTable& table, const float* values, PackedTiles& to) {
    fill_tiles(p, table, std::vector<int>(p.taps, 0), 1, false, values, to);
}
void pack_transposed_tiles(const Pattern& p, const TapTable& table, const std::vector<int>& class_of, int classes,
                           const float* values, PackedTiles& to) {
    fill_tiles(p, table, class_of, classes, true, values, to);
}

void unpack_tile_gradient(const Pattern& p, const void* const* sums, int threads, float* to) {
    const int column_blocks = blocks_of(p.in);
    std::vector<uint32_t> place(p.row_length());  // of a position, in the tiles of output 0
    for (int i = 0, at = 0; i < p.in; i++)
        for (int t = 0; t < p.taps; t++, at++)
            place[at] = uint32_t((i / kBlock * p.taps + t) * kBlock * kBlock + i % kBlock / 16 * 512 + i % 16 * 16);
    for (int o = 0; o < p.out; o++) {
        const uint16_t* row = p.row(o);
        const size_t first = size_t(o / kBlock) * column_blocks * p.taps * kBlock * kBlock + o % kBlock / 16 * 256 + o % 16;
        for (size_t k = 0; k < p.row_count(o); k++) {
            const size_t at = first + place[row[k]];
            float sum = 0;
            for (int thread = 0; thread < threads; thread++)
                sum += ((const float*)sums[thread])[at];
            *to++ = sum;
        }
    }
}

}  // namespace regrow
