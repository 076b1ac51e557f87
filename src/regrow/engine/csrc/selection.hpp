// What a topology update does to whole weights, in one pass each where torch's operations take ten.
#pragma once
#include <cstddef>
#include <cstdint>

namespace regrow {

// to[i] = whether i is among the `count` candidates with the largest scores. NaN counts as -infinity, on ties the lower
// index wins. `among`: 0 or 1 each; there must be at least `count` candidates.
void select(const float* scores, const uint8_t* among, size_t size, size_t count, uint8_t* to);

// The places of what is not 0, ascending, and one number more, which means nothing. Returns how many there are.
size_t positions(const uint8_t* mask, size_t size, int32_t* to);

// to[k] = flat position of entry k in a matrix `width` wide, whose row r begins at entry starts[r]; columns less 32,768.
void expand(const int16_t* columns, size_t count, const int64_t* starts, size_t rows, size_t width, int32_t* to);

// Of two ascending lists: which entries of each are in the other.
void overlap(const int32_t* a, size_t count_a, const int32_t* b, size_t count_b, uint8_t* in_b, uint8_t* in_a);

}  // namespace regrow
