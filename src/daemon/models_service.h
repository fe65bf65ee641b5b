#pragma once

#include "base/home.h"
#include "daemon/catalog.h"
#include "daemon/jobs.h"
#include "daemon/stream_writer.h"
#include "daemon/supervisor.h"
#include "layers/store.h"
#include "strata/v1/models.grpc.pb.h"

#include <boost/asio/thread_pool.hpp>

namespace strata::daemon {

// The models of this node's store. What only reads the store runs on `workers`; what reads other files or every byte
// runs as a job process.
class ModelsService final : public v1::Models::CallbackService {
public:
    ModelsService(const Home & home, layers::Store & store, Catalog & catalog, Supervisor & supervisor,
                  JobRunner & jobs, boost::asio::thread_pool & workers)
        : home_(home)
        , store_(store)
        , catalog_(catalog)
        , supervisor_(supervisor)
        , jobs_(jobs)
        , workers_(workers) {}

    grpc::ServerUnaryReactor * List(grpc::CallbackServerContext * context, const v1::ListModelsRequest * request,
                                    v1::ListModelsResponse * response) override;
    grpc::ServerUnaryReactor * Show(grpc::CallbackServerContext * context, const v1::ShowModelRequest * request,
                                    v1::ShowModelResponse * response) override;
    grpc::ServerUnaryReactor * Remove(grpc::CallbackServerContext * context, const v1::RemoveModelRequest * request,
                                      v1::RemoveModelResponse * response) override;
    grpc::ServerUnaryReactor * CollectGarbage(grpc::CallbackServerContext * context,
                                              const v1::CollectGarbageRequest * request,
                                              v1::CollectGarbageResponse * response) override;
    grpc::ServerWriteReactor<v1::JobProgress> * Import(grpc::CallbackServerContext * context,
                                                       const v1::ImportModelRequest * request) override;
    grpc::ServerWriteReactor<v1::JobProgress> * Pull(grpc::CallbackServerContext * context,
                                                     const v1::PullModelRequest * request) override;
    grpc::ServerWriteReactor<v1::JobProgress> * Verify(grpc::CallbackServerContext * context,
                                                       const v1::VerifyModelRequest * request) override;

private:
    using Writer = StreamWriter<v1::JobProgress>;

    absl::StatusOr<JobSpec> import_job(const v1::ImportModelRequest & request) const;
    absl::StatusOr<JobSpec> pull_job(const v1::PullModelRequest & request) const;
    absl::StatusOr<JobSpec> verify_job(const v1::VerifyModelRequest & request) const;
    absl::Status show(const v1::ShowModelRequest & request, v1::ShowModelResponse & response) const;
    grpc::ServerWriteReactor<v1::JobProgress> * run(const absl::StatusOr<JobSpec> & spec);
    void finish_message(const JobResult & result, v1::JobProgress & message) const;

    const Home home_;
    layers::Store & store_;
    Catalog & catalog_;
    Supervisor & supervisor_;
    JobRunner & jobs_;
    boost::asio::thread_pool & workers_;
};

} // namespace strata::daemon
