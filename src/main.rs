fn main() -> std::process::ExitCode {
    crfs::cli::run()
}
