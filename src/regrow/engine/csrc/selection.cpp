// Top-k: a sample tells a score that a few more than `count` reach; those alone are listed, and searched by radix.
//
//     sample   an eighth, 16,384 at most, at scattered places; its quantile, three deviations lower, is the bound
//     pass     16 scores at a time, most of them all below the bound: 5 bytes each, half a nanosecond
//     list     by 12, 10 and 10 bits of its keys, integers that sort as the scores; of equal keys the first are taken
//
// Where the bound was too high (one time in a thousand), the list is made anew without one. The result does not depend on it.
#include "selection.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace regrow {
namespace {

struct Candidate {
    uint32_t key, place;
};

inline uint32_t key(float score) {  // ascending as the scores; -0 as 0, NaN as -infinity
    const float f = score != score ? -INFINITY : score + 0.0f;
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits ^ (uint32_t(int32_t(bits) >> 31) | 0x80000000u);
}

// A score that, in all likelihood, at least `count` reach, and few more; NaN where only all of them would do.
float bound(const float* scores, const uint8_t* among, size_t size, size_t count) {
    constexpr size_t least = 64;
    const size_t places = std::min<size_t>(1 << 14, size / 8);
    std::vector<float> sample;
    for (uint64_t i = 0; i < places; i++) {
        const size_t place = size_t(i * 0x9E3779B97F4A7C15u >> 32) * size >> 32;  // the golden ratio: scattered evenly
        if (among[place])
            sample.push_back(scores[place]);
    }
    const double drawn = double(sample.size()), share = double(count) / (drawn / double(places) * double(size));
    if (drawn < least || share >= 1)
        return NAN;
    const size_t rank = size_t(drawn * share + 3 * std::sqrt(drawn * share * (1 - share)) + 2);
    if (rank >= sample.size())
        return NAN;
    const auto above = [](float a, float b) { return key(a) > key(b); };
    std::nth_element(sample.begin(), sample.begin() + rank, sample.end(), above);
    return sample[rank];
}

constexpr size_t BLOCK = 32;

// Appends those of a block that reach `least`, or all; `length` is known to the compiler but for the last block.
inline void list_block(const float* scores, const uint8_t* among, size_t first, size_t length, float least, bool all,
                       std::vector<Candidate>& found) {
    uint32_t any = all;
    for (size_t i = 0; i < length; i++)
        any |= uint32_t(scores[first + i] >= least) & among[first + i];
    if (!any)
        return;
    Candidate reach[BLOCK];
    size_t count = 0;
    for (size_t i = 0; i < length; i++) {  // no branch that half of the time goes the other way
        reach[count] = {0, uint32_t(first + i)};
        count += (all | (scores[first + i] >= least)) & among[first + i];
    }
    for (size_t i = 0; i < count; i++)
        reach[i].key = key(scores[reach[i].place]);
    found.insert(found.end(), reach, reach + count);
}

// Those that reach `least`, in their order; all of them where it is NaN.
void list(const float* scores, const uint8_t* among, size_t size, float least, std::vector<Candidate>& found) {
    const bool all = least != least;
    found.clear();
    size_t first = 0;
    for (; first + BLOCK <= size; first += BLOCK)
        list_block(scores, among, first, BLOCK, least, all, found);
    list_block(scores, among, first, size - first, least, all, found);
}

// The bin with the `rank`-th largest (from 1); rank becomes its rank within the bin.
uint32_t find_bin(const std::vector<uint32_t>& histogram, size_t& rank) {
    for (size_t bin = histogram.size(); bin-- > 0;) {
        if (rank <= histogram[bin])
            return uint32_t(bin);
        rank -= histogram[bin];
    }
    return 0;
}

}  // namespace

void select(const float* scores, const uint8_t* among, size_t size, size_t count, uint8_t* to) {
    std::fill_n(to, size, uint8_t(0));
    if (count == 0)
        return;
    std::vector<Candidate> candidates;
    candidates.reserve(count + count / 4);
    list(scores, among, size, bound(scores, among, size, count), candidates);
    if (candidates.size() < count)
        list(scores, among, size, NAN, candidates);
    constexpr int shifts[] = {20, 10, 0}, bits[] = {12, 10, 10};
    size_t rank = count;  // in the end: how many of those at the threshold are wanted
    uint32_t threshold = 0;
    for (int level = 0; level < 3; level++) {
        const uint32_t mask = (1u << bits[level]) - 1;
        std::vector<uint32_t> histogram(size_t(mask) + 1, 0);
        for (const Candidate& c : candidates)
            if (level == 0 || c.key >> shifts[level - 1] == threshold)
                histogram[(c.key >> shifts[level]) & mask]++;
        threshold = threshold << bits[level] | find_bin(histogram, rank);
    }
    for (const Candidate& c : candidates) {
        const bool tie = c.key == threshold && rank > 0;
        rank -= tie;
        to[c.place] = tie || c.key > threshold;
    }
}

size_t positions(const uint8_t* mask, size_t size, int32_t* to) {
    size_t count = 0;
    for (size_t i = 0; i < size; i++) {  // no branch that half of the time goes the other way
        to[count] = int32_t(i);
        count += mask[i] != 0;
    }
    return count;
}

void expand(const int16_t* columns, size_t count, const int64_t* starts, size_t rows, size_t width, int32_t* to) {
    for (size_t row = 0; row < rows; row++)
        for (size_t k = size_t(starts[row]); k < std::min(size_t(starts[row + 1]), count); k++)
            to[k] = int32_t(row * width) + columns[k] + 32768;
}

void overlap(const int32_t* a, size_t count_a, const int32_t* b, size_t count_b, uint8_t* in_b, uint8_t* in_a) {
    std::fill_n(in_b, count_a, uint8_t(0)), std::fill_n(in_a, count_b, uint8_t(0));  // an empty list has no memory
    for (size_t i = 0, j = 0; i < count_a && j < count_b;) {
        if (a[i] == b[j])
            in_b[i++] = 1, in_a[j++] = 1;
        else
            a[i] < b[j] ? i++ : j++;
    }
}

}  // namespace regrow
