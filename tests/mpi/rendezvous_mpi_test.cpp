#include <chrono>
#include <functional>
#include <gtest/gtest.h>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "mpi_session.h"
#include "parallel/nccl/rendezvous.h"

namespace chaski {
namespace {

constexpr int kTag = 3;
constexpr int kGivenUpTag = 4;
constexpr int kComingTag = 5;

class MeetingTest : public testing::Test {
 protected:
  void SetUp() override { give_up_after(std::chrono::seconds(30)); }

  void give_up_after(std::chrono::milliseconds limit) {
    const auto deadline = std::chrono::steady_clock::now() + limit;
    communicator_.set_wait_callback([deadline] {
      if (std::chrono::steady_clock::now() > deadline) throw std::runtime_error("waits too long");
    });
  }
  bool is_first() const { return communicator_.rank() == 0; }
  std::vector<int> all_ranks() const {
    std::vector<int> ranks(static_cast<std::size_t>(communicator_.size()));
    std::iota(ranks.begin(), ranks.end(), 0);
    return ranks;
  }

  // The first one makes it when all have come, and not before.
  void expect_agreement(char subject) {
    give_up_after(std::chrono::seconds(30));
    communicator_.barrier();
    char byte = 0;
    std::vector<Request> coming;
    for (int from = 1; is_first() && from < communicator_.size(); ++from) {
      coming.push_back(communicator_.irecv(&byte, 1, from, kComingTag));
    }
    if (!is_first()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      coming.push_back(communicator_.isend(&byte, 1, 0, kComingTag));
    }
    Rendezvous::Subject made{};
    made.fill(static_cast<char>(subject + communicator_.rank()));
    const Rendezvous::Subject agreed = rendezvous_.agree([&] {
      for (Request& request : coming) EXPECT_TRUE(communicator_.test(request));
      return made;
    });
    EXPECT_EQ(agreed.front(), subject);
    EXPECT_EQ(agreed.back(), subject);
    for (Request& request : coming) communicator_.wait(request);
  }
  void expect_given_up(const std::function<Rendezvous::Subject()>& make = {}) {
    give_up_after(std::chrono::milliseconds(50));
    EXPECT_THROW(rendezvous_.agree(make), std::runtime_error);
    give_up_after(std::chrono::seconds(30));
  }

  Communicator communicator_{mpi_session()};
  Rendezvous rendezvous_{communicator_, all_ranks(), kTag};
};

TEST_F(MeetingTest, AllGetWhatTheFirstOneMakes) {
  for (const char subject : {'a', 'n', 'x'}) expect_agreement(subject);
}

TEST_F(MeetingTest, WhoGaveUpAnyNumberOfMeetingsMeetsTheOthers) {
  if (communicator_.size() == 1) return;
  // Nobody comes; then all come but the first one, and answer what he asked before.
  for (int i = 0; is_first() && i < 3; ++i) expect_given_up();
  communicator_.barrier();
  for (int i = 0; !is_first() && i <= communicator_.rank(); ++i) expect_given_up();
  expect_agreement('k');
  expect_agreement('l');
}

TEST_F(MeetingTest, WhatWasToldTooLateIsNotHeard) {
  if (communicator_.size() == 1) return;
  char byte = 0;
  if (is_first()) {
    // He tells it when the others, who have answered, have gone.
    rendezvous_.agree([&] {
      for (int from = 1; from < communicator_.size(); ++from) {
        Request request = communicator_.irecv(&byte, 1, from, kGivenUpTag);
        communicator_.wait(request);
      }
      Rendezvous::Subject late{};
      late.fill('?');
      return late;
    });
  } else {
    give_up_after(std::chrono::milliseconds(500));
    EXPECT_THROW(rendezvous_.agree({}), std::runtime_error);
    give_up_after(std::chrono::seconds(30));
    Request request = communicator_.isend(&byte, 1, 0, kGivenUpTag);
    communicator_.wait(request);
  }
  expect_agreement('s');
}

TEST_F(MeetingTest, GroupsWithTheSameTagDoNotHearEachOther) {
  if (communicator_.size() < 3) return;
  // Each other process with the first one alone.
  for (int other = 1; other < communicator_.size(); ++other) {
    if (!is_first() && communicator_.rank() != other) continue;
    Rendezvous pair(communicator_, {0, other}, kGivenUpTag);
    Rendezvous::Subject subject{};
    subject.fill(static_cast<char>('a' + other));
    EXPECT_EQ(pair.agree([&] { return subject; }), subject);
  }
}

}  // namespace
}  // namespace chaski
