// Top-k by radix: scores become integers that sort alike; a histogram of their upper bits finds the bin that holds the
// count-th largest, and the few keys of that bin are searched further.
//
//     pass 1   histogram of the upper 12 bits        all scores: 5 bytes each, about a nanosecond
//     pass 2   those above the bin go to the mask, those in it to a list
//     the list by its next 10 and its last 10 bits; of equal keys the first ones are taken
#include "selection.hpp"

#include <cmath>
#include <cstring>
#include <vector>

namespace regrow {
namespace {

struct Candidate {
    uint32_t key;
    size_t place;
};

uint32_t key(float score) {  // ascending as the scores; -0 as 0, NaN as -infinity
    const float f = score != score ? -INFINITY : score + 0.0f;
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits ^ (uint32_t(int32_t(bits) >> 31) | 0x80000000u);
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
    if (count == 0) {
        memset(to, 0, size);
        return;
    }
    constexpr int shifts[] = {20, 10, 0}, bits[] = {12, 10, 10};
    constexpr size_t bins = size_t(1) << bits[0];
    // four histograms: neighbouring scores often share a bin, and an addition waits for the one before it
    std::vector<uint32_t> histogram(4 * bins, 0);
    for (size_t i = 0; i < size; i++)
        histogram[i % 4 * bins + (key(scores[i]) >> shifts[0])] += among[i] != 0;
    for (size_t bin = 0; bin < bins; bin++)
        histogram[bin] += histogram[bins + bin] + histogram[2 * bins + bin] + histogram[3 * bins + bin];
    histogram.resize(bins);
    size_t rank = count;  // in the end: how many of those at the threshold are wanted
    uint32_t threshold = find_bin(histogram, rank);
    std::vector<Candidate> list;
    list.reserve(histogram[threshold]);
    for (size_t i = 0; i < size; i++) {
        const uint32_t k = key(scores[i]), bin = k >> shifts[0];
        to[i] = (bin > threshold) & (among[i] != 0);
        if (bin == threshold && among[i])
            list.push_back({k, i});
    }
    for (int level = 1; level < 3; level++) {
        const uint32_t mask = (1u << bits[level]) - 1;
        histogram.assign(size_t(mask) + 1, 0);
        for (const Candidate& c : list)
            if (c.key >> shifts[level - 1] == threshold)
                histogram[(c.key >> shifts[level]) & mask]++;
        threshold = threshold << bits[level] | find_bin(histogram, rank);
    }
    for (const Candidate& c : list) {
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

void overlap(const int32_t* a, size_t count_a, const int32_t* b, size_t count_b, uint8_t* in_b, uint8_t* in_a) {
    memset(in_b, 0, count_a), memset(in_a, 0, count_b);
    for (size_t i = 0, j = 0; i < count_a && j < count_b;) {
        if (a[i] == b[j])
            in_b[i++] = 1, in_a[j++] = 1;
        else
            a[i] < b[j] ? i++ : j++;
    }
}

}  // namespace regrow
