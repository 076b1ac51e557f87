// The memory of a plan: arenas for activations, slots in them, and the masks of a batch that does not fill its tiles.
#include <algorithm>
#include <cstring>
#include <new>

#include "context.hpp"
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace regrow {
namespace {

constexpr size_t kPage = 4096, kHugePage = size_t(2) << 20;
constexpr uint16_t kOneBFloat16 = 0x3f80;

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

}  // namespace

Arena::Arena(size_t wanted) : data(nullptr), bytes(wanted) {
    const size_t align = wanted >= kHugePage ? kHugePage : kPage;
    data = (char*)std::aligned_alloc(align, round_up(std::max<size_t>(wanted, 1), align));
    if (!data)
        throw std::bad_alloc();
#if defined(__linux__)
    if (wanted >= kHugePage)
        madvise(data, round_up(wanted, align), MADV_HUGEPAGE);
#endif
}
Arena::~Arena() { free(data); }

char* Plan::Scratch::get(size_t wanted) {
    if (wanted > bytes) {
        free(data);
        bytes = round_up(wanted, kPage);
        data = (char*)std::aligned_alloc(kPage, bytes);
        if (!data)
            throw std::bad_alloc();
        memset(data, 0, bytes);
    }
    return data;
}

Shape Plan::shape(const TensorRecord& t, const Run& run) const {
    if (t.flat)
        return {(run.image_tiles + run.group - 1) / run.group, 1, t.channels, run.group, run.flat_mask};
    return {run.image_tiles, t.height, t.channels, t.width, run.image_mask};
}

std::vector<size_t> Plan::slot_offsets(int program, const Run& run) const {
    std::vector<size_t> bytes;
    for (const TensorRecord& t : tensors_) {
        if (t.program != program)
            continue;
        const int slot = run.light ? t.light_slot : t.slot;
        if (size_t(slot) >= bytes.size())
            bytes.resize(slot + 1);
        bytes[slot] = std::max(bytes[slot], round_up(shape(t, run).bytes(), kPage) + kLine * size_t(1 + slot % 13));
    }
    std::vector<size_t> offsets{0};
    for (size_t b : bytes)
        offsets.push_back(round_up(offsets.back() + b, kLine));
    return offsets;
}

size_t Plan::arena_bytes(int program, int batch, bool save) const {
    Run run;
    run.light = !save;
    set_sizes(run, batch, 1);
    return slot_offsets(program, run).back();
}

void Plan::set_sizes(Run& run, int batch, int threads) const {
    run.batch = batch, run.threads = std::max(1, threads);
    run.image_tiles = (batch + lanes() - 1) / lanes();
    run.group = std::clamp((run.image_tiles + run.threads - 1) / run.threads, 1, kTileLines);
    const int flat_tiles = (run.image_tiles + run.group - 1) / run.group;
    if (flat_tiles * run.group * lanes() == batch)
        return;
    int width = 1;
    for (const TensorRecord& t : tensors_)
        width = std::max(width, t.width);
    run.mask_memory = std::make_shared<Arena>(size_t(width + run.group) * kLine);
    char* at = run.mask_memory->data;
    auto line = [&](int first) {  // ones for the images that exist
        for (int lane = 0; lane < lanes(); lane++) {
            const bool there = first + lane < batch;
            if (dtype_ == Dtype::BFloat16)
                ((uint16_t*)at)[lane] = there ? kOneBFloat16 : 0;
            else
                put_scalar(at, is_double(), lane, there);
        }
        at += kLine;
    };
    run.flat_mask = at;
    for (int g = 0; g < run.group; g++)
        line(((flat_tiles - 1) * run.group + g) * lanes());
    if (run.image_tiles * lanes() == batch)
        return;
    run.image_mask = at;
    for (int x = 0; x < width; x++)
        line((run.image_tiles - 1) * lanes());
}

std::shared_ptr<Arena> Plan::take_arena(int program, const Run& run) {
    const size_t bytes = slot_offsets(program, run).back();
    for (auto& spare : spare_)
        if (spare.use_count() == 1 && spare->bytes == bytes)
            return spare;
    spare_.erase(
        std::remove_if(spare_.begin(), spare_.end(), [&](auto& s) { return spare_.size() > 3 && s.use_count() == 1; }),
        spare_.end());
    spare_.push_back(std::make_shared<Arena>(bytes));
    return spare_.back();
}

}  // namespace regrow
