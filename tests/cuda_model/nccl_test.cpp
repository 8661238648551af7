#include <array>
#include <cstdio>
#include <cstdlib>
#include <cuda_runtime_api.h>
#include <filesystem>
#include <functional>
#include <gtest/gtest.h>
#include <nccl.h>
#include <poll.h>
#include <string>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

#include "tests/cuda_model/control.h"
#include "tests/cuda_model/device_objects.h"
#include "tests/cuda_model/test_kernels.h"

// The false NCCL: processes that are forked for each test.
namespace chaski::cuda_model::test {
namespace {

constexpr int kCount = 5;
constexpr int kHangSeconds = 20;

/// A line through which processes tell each other that they have come to a place.
class Signal {
 public:
  Signal() { EXPECT_EQ(pipe(ends_.data()), 0); }
  void give() const { EXPECT_EQ(write(ends_[1], "x", 1), 1); }
  void take() const {
    char byte = 0;
    EXPECT_EQ(read(ends_[0], &byte, 1), 1);
  }

 private:
  std::array<int, 2> ends_{};
};

/// One process of a group, after it has joined.
class Member {
 public:
  Member(ncclUniqueId id, int size, int rank) : rank_(rank) {
    EXPECT_EQ(cudaSetDevice(rank), cudaSuccess);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    EXPECT_EQ(ncclCommInitRankConfig(&comm_, size, id, rank, &config), ncclInProgress);
    joined_ = complete();
  }

  ncclResult_t joined() const { return joined_; }
  int rank() const { return rank_; }
  ncclComm_t comm() const { return comm_; }
  const Stream& stream() const { return stream_; }

  ncclResult_t state() const {
    ncclResult_t state = ncclSuccess;
    EXPECT_EQ(ncclCommGetAsyncError(comm_, &state), ncclSuccess);
    return state;
  }
  ncclResult_t complete() const {
    ncclResult_t now = state();
    while (now == ncclInProgress) {
      usleep(100);
      now = state();
    }
    return now;
  }
  void sum(float* data, int count = kCount) const {
    EXPECT_EQ(ncclAllReduce(data, data, count, ncclFloat32, ncclSum, comm_, stream_),
              ncclInProgress);
    EXPECT_EQ(complete(), ncclSuccess);
  }
  void send(const float* data, int peer, int count = kCount) const {
    EXPECT_EQ(ncclSend(data, count, ncclFloat32, peer, comm_, stream_), ncclInProgress);
    EXPECT_EQ(complete(), ncclSuccess);
  }
  void receive(float* data, int peer, int count = kCount, ncclDataType_t type = ncclFloat32) const {
    EXPECT_EQ(ncclRecv(data, count, type, peer, comm_, stream_), ncclInProgress);
    EXPECT_EQ(complete(), ncclSuccess);
  }
  void leave() const {
    EXPECT_EQ(ncclCommFinalize(comm_), ncclInProgress);
    EXPECT_EQ(complete(), ncclSuccess);
    EXPECT_EQ(ncclCommDestroy(comm_), ncclSuccess);
  }

 private:
  int rank_;
  Stream stream_;
  ncclComm_t comm_ = nullptr;
  ncclResult_t joined_ = ncclSuccess;
};

struct Ended {
  int status = 0;
  std::string errors;
};

using Body = std::function<void(ncclUniqueId, int rank)>;

/// Runs it in processes of their own.
std::vector<Ended> run_processes(int size, const Body& body) {
  ncclUniqueId id;
  EXPECT_EQ(ncclGetUniqueId(&id), ncclSuccess);
  std::vector<pid_t> processes;
  std::vector<std::FILE*> outputs;
  for (int rank = 0; rank < size; ++rank) {
    outputs.push_back(std::tmpfile());
    processes.push_back(fork());
    if (processes.back() == 0) {
      dup2(fileno(outputs.back()), STDERR_FILENO);
      dup2(fileno(outputs.back()), STDOUT_FILENO);
      alarm(kHangSeconds);
      body(id, rank);
      std::fflush(nullptr);
      _exit(testing::Test::HasFailure() ? 1 : 0);
    }
  }
  std::vector<Ended> ended(static_cast<std::size_t>(size));
  for (std::size_t i = 0; i < ended.size(); ++i) {
    waitpid(processes[i], &ended[i].status, 0);
    std::rewind(outputs[i]);
    std::array<char, 4096> text{};
    while (std::fgets(text.data(), text.size(), outputs[i]) != nullptr) {
      ended[i].errors += text.data();
    }
    std::fclose(outputs[i]);
  }
  std::error_code error;
  std::filesystem::remove_all(id.internal, error);
  return ended;
}

void expect_success(int size, const std::function<void(const Member&)>& body) {
  const auto ended = run_processes(size, [&](ncclUniqueId id, int rank) {
    const Member member(id, size, rank);
    body(member);
  });
  for (const Ended& process : ended) EXPECT_EQ(process.status, 0) << process.errors;
}

/// That some process ends with a message.
void expect_report(const std::string& message, const std::function<void(const Member&)>& body) {
  const auto ended = run_processes(2, [&](ncclUniqueId id, int rank) {
    const Member member(id, 2, rank);
    body(member);
    if (rank == 1) _exit(0);
  });
  std::string all;
  for (const Ended& process : ended) all += process.errors;
  EXPECT_NE(all.find(message), std::string::npos) << all;
}

TEST(Nccl, SumsAreTheSameForAll) {
  expect_success(3, [](const Member& member) {
    const float values[] = {1e8F, 1.0F, -1e8F};  // the order of additions shows
    const DeviceArray<float> data(kCount);
    ASSERT_EQ(fill(member.stream(), data, values[member.rank()], kCount), cudaSuccess);
    member.sum(data);
    member.stream().synchronize();
    for (const float value : data.values()) EXPECT_EQ(value, (1e8F + 1.0F) - 1e8F);
    member.leave();
  });
}

TEST(Nccl, TensorsArriveInOrder) {
  expect_success(2, [](const Member& member) {
    const DeviceArray<float> data(3 * kCount);
    for (int i = 0; i < 3; ++i) {
      float* const tensor = data + i * kCount;
      if (member.rank() == 0) {
        ASSERT_EQ(fill(member.stream(), tensor, 1.0F + static_cast<float>(i), kCount), cudaSuccess);
        member.send(tensor, 1);
      } else {
        member.receive(tensor, 0);
      }
    }
    member.stream().synchronize();
    EXPECT_EQ(data.values()[3 * kCount - 1], 3.0F);
    EXPECT_EQ(data.values()[0], 1.0F);
    member.leave();
  });
}

TEST(Nccl, NothingIsDoneBeforeTheOtherSideHasCome) {
  const Signal asked;
  const Signal linked;
  expect_success(2, [&](const Member& member) {
    const DeviceArray<float> data(kCount);
    cudaEvent_t done = nullptr;
    ASSERT_EQ(cudaEventCreate(&done), cudaSuccess);
    if (member.rank() == 1) {
      asked.take();
      member.receive(data, 0);  // the first
      linked.take();
      member.receive(data, 0);
      member.stream().synchronize();
      EXPECT_EQ(data.values()[0], 7.0F);
    } else {
      // The first call is under way until the other side has made it.
      ASSERT_EQ(ncclSend(data, kCount, ncclFloat32, 1, member.comm(), member.stream()),
                ncclInProgress);
      for (int i = 0; i < 5; ++i) EXPECT_EQ(member.state(), ncclInProgress);
      EXPECT_EQ(ncclSend(data, kCount, ncclFloat32, 1, member.comm(), member.stream()),
                ncclInvalidUsage);
      asked.give();
      EXPECT_EQ(member.complete(), ncclSuccess);
      // The next one is queued at once, and waits in its stream.
      ASSERT_EQ(fill(member.stream(), data, 7.0F, kCount), cudaSuccess);
      member.send(data, 1);
      ASSERT_EQ(cudaEventRecord(done, member.stream()), cudaSuccess);
      for (int i = 0; i < 5; ++i) EXPECT_EQ(cudaEventQuery(done), cudaErrorNotReady);
      linked.give();
      EXPECT_EQ(cudaEventSynchronize(done), cudaSuccess);
    }
    member.leave();
  });
}

TEST(Nccl, ALargerSumConnectsAnew) {
  const Signal asked;
  expect_success(2, [&](const Member& member) {
    constexpr int kMany = 1000;
    const DeviceArray<float> data(kMany);
    ASSERT_EQ(fill(member.stream(), data, 1.0F, kMany), cudaSuccess);
    member.sum(data);
    if (member.rank() == 1) {
      asked.take();
      member.sum(data, kMany);
    } else {
      ASSERT_EQ(
          ncclAllReduce(data, data, kMany, ncclFloat32, ncclSum, member.comm(), member.stream()),
          ncclInProgress);
      for (int i = 0; i < 5; ++i) EXPECT_EQ(member.state(), ncclInProgress);
      asked.give();
      EXPECT_EQ(member.complete(), ncclSuccess);
    }
    member.stream().synchronize();
    EXPECT_EQ(data.values()[kMany - 1], 2.0F);
    member.leave();
  });
}

TEST(Nccl, StreamsGoOnWithoutTheirHost) {
  const Signal received;
  expect_success(2, [&](const Member& member) {
    const DeviceArray<float> data(kCount);
    if (member.rank() == 0) {
      ASSERT_EQ(fill(member.stream(), data, 2.0F, kCount), cudaSuccess);
      member.send(data, 1);
      received.take();
    } else {
      member.receive(data, 0);
      member.stream().synchronize();
      EXPECT_EQ(data.values()[0], 2.0F);
      received.give();
    }
    member.leave();
  });
}

TEST(Nccl, MemoryWrittenTooEarlyShows) {
  const Signal overwritten;
  expect_success(2, [&](const Member& member) {
    const DeviceArray<float> data(kCount);
    const DeviceArray<float> first(1);
    if (member.rank() == 0) {
      member.send(first, 1, 1);
      ASSERT_EQ(fill(member.stream(), data, 2.0F, kCount), cudaSuccess);
      member.stream().synchronize();
      member.send(data, 1);
      EXPECT_EQ(cudaStreamQuery(member.stream()), cudaErrorNotReady);
      EXPECT_EQ(cudaStreamQuery(member.stream()), cudaErrorNotReady);
      const Stream other;
      ASSERT_EQ(fill(other, data, 3.0F, kCount), cudaSuccess);
      other.synchronize();
      overwritten.give();
    } else {
      member.receive(first, 0, 1);
      overwritten.take();
      member.receive(data, 0);
      member.stream().synchronize();
      EXPECT_EQ(data.values()[0], 3.0F);
    }
    member.leave();
  });
}

TEST(Nccl, AbortEndsWhatWaits) {
  expect_success(2, [](const Member& member) {
    const DeviceArray<float> data(kCount);
    if (member.rank() == 0) {
      member.send(data, 1);
      member.receive(data, 1);
      EXPECT_EQ(cudaStreamQuery(member.stream()), cudaErrorNotReady);
      EXPECT_EQ(ncclCommAbort(member.comm()), ncclSuccess);
      member.stream().synchronize();
    } else {
      member.receive(data, 0);
      ASSERT_EQ(ncclSend(data, kCount, ncclFloat32, 0, member.comm(), member.stream()),
                ncclInProgress);
      EXPECT_EQ(member.complete(), ncclSuccess);
      EXPECT_EQ(ncclCommAbort(member.comm()), ncclSuccess);
    }
  });
}

TEST(Nccl, AbortsMayBeMadeToLeaveWhatWaits) {
  expect_success(2, [](const Member& member) {
    const DeviceArray<float> data(kCount);
    if (member.rank() == 1) {
      member.receive(data, 0);
      EXPECT_EQ(ncclCommAbort(member.comm()), ncclSuccess);
      return;
    }
    member.send(data, 1);
    set_nccl_abort(NcclAbort::kLeaves);
    EXPECT_EQ(ncclCommAbort(member.comm()), ncclSuccess);
    for (int i = 0; i < 5; ++i) EXPECT_EQ(cudaStreamQuery(member.stream()), cudaErrorNotReady);
    set_nccl_abort(NcclAbort::kEnds);
    member.stream().synchronize();
  });
}

TEST(Nccl, TwoProcessesOnOneGpuAreRefused) {
  const auto ended = run_processes(2, [](ncclUniqueId id, int rank) {
    ncclComm_t comm = nullptr;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    ncclCommInitRankConfig(&comm, 2, id, rank, &config);
    ncclResult_t state = ncclInProgress;
    while (state == ncclInProgress) ncclCommGetAsyncError(comm, &state);
    EXPECT_EQ(state, ncclInvalidUsage);
    EXPECT_STREQ(ncclGetLastError(comm), "Duplicate GPU detected");
    ncclCommAbort(comm);
  });
  for (const Ended& process : ended) EXPECT_EQ(process.status, 0) << process.errors;
}

TEST(NcclReports, OperationsThatDoNotMatch) {
  expect_report("a receive of 4 f32 of rank 1 meets a send of 5 f32 of rank 0",
                [](const Member& member) {
                  const DeviceArray<float> data(kCount);
                  member.rank() == 0 ? member.send(data, 1) : member.receive(data, 0, 4);
                  member.stream().synchronize();
                });
  expect_report(
      "a receive of 5 bf16 of rank 1 meets a send of 5 f32 of rank 0", [](const Member& member) {
        const DeviceArray<float> data(kCount);
        member.rank() == 0 ? member.send(data, 1) : member.receive(data, 0, kCount, ncclBfloat16);
        member.stream().synchronize();
      });
  expect_report("a sum of 4 f32 of rank 1 meets a sum of 5 f32 of rank 0",
                [](const Member& member) {
                  const DeviceArray<float> data(kCount);
                  member.sum(data, member.rank() == 0 ? 5 : 4);
                  member.stream().synchronize();
                });
}

TEST(NcclReports, UseAfterAnAbort) {
  expect_report("was aborted or destroyed", [](const Member& member) {
    const DeviceArray<float> data(kCount);
    ncclCommAbort(member.comm());
    member.sum(data);
  });
}

TEST(NcclReports, SendsWithoutAReceive) {
  expect_report("destroyed while 1 of its operations wait", [](const Member& member) {
    const DeviceArray<float> data(kCount);
    if (member.rank() == 1) {
      member.receive(data, 0);
      return member.stream().synchronize();
    }
    member.send(data, 1);
    member.stream().synchronize();
    member.send(data, 1);
    ncclCommFinalize(member.comm());
    for (int i = 0; i < 10; ++i) EXPECT_EQ(member.state(), ncclInProgress);
    ncclCommDestroy(member.comm());
  });
}

}  // namespace
}  // namespace chaski::cuda_model::test
