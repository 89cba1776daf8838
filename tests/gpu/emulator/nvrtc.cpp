// A compiler of CUDA C++ (libnvrtc) that makes libraries for this machine's processor: the source goes to g++ with the
// headers of include/, which say what CUDA's names mean here. The "PTX" is the library's path.
//
// Libraries are kept below DG_EMULATED_CACHE, or else /tmp/dg-emulated, by the text of their source.
#include <sys/stat.h>
#include <unistd.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {
struct Program {
    std::string source, log, ptx;
};

// The folder of this library.
std::string home() {
    Dl_info info{};
    dladdr(reinterpret_cast<void *>(&home), &info);
    std::string path = info.dli_fname;
    return path.substr(0, path.rfind('/'));
}

std::string cache() {
    const char *named = getenv("DG_EMULATED_CACHE");
    std::string folder = named ? named : "/tmp/dg-emulated";
    mkdir(folder.c_str(), 0755);
    return folder;
}

uint64_t hash(const std::string &text) {
    uint64_t h = 1469598103934665603u;
    for (unsigned char c : text) h = (h ^ c) * 1099511628211u;
    return h;
}

std::string read(const std::string &path) {
    std::ifstream file(path);
    std::stringstream all;
    all << file.rdbuf();
    return all.str();
}

// `"c"(value)` → `value`, for each operand of a list.
std::vector<std::string> operands(const std::string &list) {
    std::vector<std::string> found;
    for (size_t at = list.find('"'); at != std::string::npos; at = list.find('"', at)) {
        size_t end = list.find('"', at + 1), open = list.find('(', end), close = open;
        for (int depth = 0; close < list.size(); close++) {
            depth += (list[close] == '(') - (list[close] == ')');
            if (depth == 0) break;
        }
        found.push_back(list.substr(open + 1, close - open - 1));
        at = close;
    }
    return found;
}

// The parts of a list that are not inside parentheses.
std::vector<std::string> split(const std::string &list, char at) {
    std::vector<std::string> parts;
    int depth = 0;
    std::string part;
    for (char c : list) {
        depth += (c == '(' || c == '<') - (c == ')' || c == '>');
        if (c == at && depth == 0) {
            parts.push_back(part), part.clear();
        } else {
            part += c;
        }
    }
    parts.push_back(part);
    return parts;
}

// PTX in `asm(…)` becomes a call of a function of emulated.h: `mma.sync.….f32 {…}` → `ptx_mma_sync_…_f32(results, inputs)`.
std::string without_assembly(const std::string &source) {
    std::string out;
    size_t from = 0;
    static const std::regex start(R"(\basm\s*(volatile)?\s*\()");
    std::smatch match;
    auto begin = source.cbegin();
    while (std::regex_search(begin + from, source.cend(), match, start)) {
        size_t at = from + match.position(0), open = at + match.length(0);
        size_t quote = source.find('"', open), end = quote + 1;
        while (source[end] != '"' || source[end - 1] == '\\') end++;
        std::string text = source.substr(quote + 1, end - quote - 1);
        size_t stop = end, depth = 1;
        for (; depth > 0; stop++) depth += (source[stop + 1] == '(') - (source[stop + 1] == ')');
        std::string rest = source.substr(end + 1, stop - end - 1);
        // results : inputs : what else changes
        auto lists = split(rest, ':');
        auto results = operands(lists.size() > 1 ? lists[1] : ""), inputs = operands(lists.size() > 2 ? lists[2] : "");
        std::string name = "ptx_" + text.substr(0, text.find_first_of(" \t\n{"));
        for (char &c : name) c = isalnum(static_cast<unsigned char>(c)) ? c : '_';
        out += source.substr(from, at - from) + name + "(";
        std::string separator;
        for (auto *list : {&results, &inputs})
            for (auto &operand : *list) out += separator + operand, separator = ", ";
        out += ")";
        from = stop + 1;
    }
    return out + source.substr(from);
}

struct Kernel {
    std::string name;
    std::vector<std::string> parameters;
};

// The name and parameter types of each `extern "C" __global__` function.
std::vector<Kernel> kernels(const std::string &source) {
    std::vector<Kernel> found;
    static const std::regex head(R"(extern "C" __global__[^{]*?(\w+)\s*\(([^{]*)\)\s*\{)");
    for (std::sregex_iterator i(source.begin(), source.end(), head), end; i != end; ++i) {
        std::string whole = (*i)[0];
        // the parameter list is the last pair of parentheses
        size_t close = whole.rfind(')'), open = close;
        for (int depth = 0; ; open--) {
            depth += (whole[open] == ')') - (whole[open] == '(');
            if (depth == 0) break;
        }
        size_t name_end = whole.find_last_not_of(" \n\t", open - 1) + 1, name_start = name_end;
        while (isalnum(static_cast<unsigned char>(whole[name_start - 1])) || whole[name_start - 1] == '_') name_start--;
        Kernel kernel{whole.substr(name_start, name_end - name_start), {}};
        for (auto &parameter : split(whole.substr(open + 1, close - open - 1), ',')) {
            if (parameter.find_first_not_of(" \n\t") == std::string::npos) continue;
            static const std::regex last(R"(\s*\w+\s*$)"), marks(R"(__grid_constant__|__restrict__)");
            std::string type = std::regex_replace(std::regex_replace(parameter, last, ""), marks, "");
            kernel.parameters.push_back(type);
        }
        found.push_back(kernel);
    }
    return found;
}

// A function with the signature that driver.cpp calls, which runs all blocks.
std::string launcher(const Kernel &kernel, bool fibers) {
    std::string call = kernel.name + "(", separator;
    for (size_t i = 0; i < kernel.parameters.size(); i++) {
        call += separator + "*static_cast<std::remove_cv_t<" + kernel.parameters[i] + "> *>(p[" + std::to_string(i) + "])";
        separator = ", ";
    }
    call += ")";
    return "extern \"C\" __attribute__((visibility(\"default\"))) void emulated_launch_" + kernel.name +
           "(const unsigned *grid, const unsigned *block, unsigned shared, void **p) {\n    emulated::launch(grid, block, "
           "shared, emulated_shared(), " + (fibers ? "true" : "false") + ", [&] { " + call + "; });\n}\n";
}

// The memory behind `extern __shared__ … char NAME[];`.
std::string shared_memory(const std::string &source) {
    static const std::regex declared(R"(extern __shared__[^;]*?(\w+)\[\];)");
    std::set<std::string> names;
    for (std::sregex_iterator i(source.begin(), source.end(), declared), end; i != end; ++i) names.insert((*i)[1]);
    std::string out;
    for (auto &name : names) out += "alignas(1024) char " + name + "[emulated::SHARED];\n";
    std::string base = names.empty() ? "nullptr" : *names.begin();
    return out + "static void *emulated_shared() { return " + base + "; }\n";
}

int compile(Program &program) {
    std::string source = without_assembly(program.source);
    // Threads of a block that wait for each other, or exchange values, need stacks of their own.
    static const std::regex together(R"(__sync|__shfl|_sync\(|wmma::|ptx_|__ballot|__activemask)");
    bool fibers = std::regex_search(source, together);
    static const std::regex dynamic(R"(extern __shared__)");
    std::string whole = "#include \"emulated.h\"\n" + std::regex_replace(source, dynamic, "extern") + "\n";
    whole += shared_memory(source);
    for (auto &kernel : kernels(source)) whole += launcher(kernel, fibers);
    std::string include = home() + "/include";
    char name[64];
    snprintf(name, sizeof name, "/k%016lx", hash(whole + read(include + "/emulated.h")));
    std::string base = cache() + name, library = base + ".so";
    program.ptx = "// emulated: " + library;
    if (access(library.c_str(), R_OK) == 0) return 0;
    std::string mine = base + "." + std::to_string(getpid()) + "." + std::to_string(reinterpret_cast<uintptr_t>(&program));
    std::ofstream(mine + ".cpp") << whole;
    std::string command = "g++ -std=c++17 -O1 -march=native -w -shared -fPIC -fvisibility=hidden -fno-strict-aliasing -I" + include + " -o " +
                          mine + ".so " + mine + ".cpp > " + mine + ".log 2>&1";
    int status = system(command.c_str());
    program.log = read(mine + ".log");
    if (status != 0) {
        if (getenv("DG_EMULATED_VERBOSE")) fprintf(stderr, "emulator: %s.cpp\n%s\n", mine.c_str(), program.log.substr(0, 3000).c_str());
        return 6;
    }
    rename((mine + ".cpp").c_str(), (base + ".cpp").c_str());
    std::ofstream(base + ".cu") << program.source;
    unlink((mine + ".log").c_str());
    return rename((mine + ".so").c_str(), library.c_str()) == 0 ? 0 : 6;
}
}  // namespace

#define API extern "C" __attribute__((visibility("default"))) int

API nvrtcVersion(int *major, int *minor) { return *major = 12, *minor = 8, 0; }
API nvrtcCreateProgram(void **out, const char *source, const char *, int, const char *const *, const char *const *) {
    return *out = new Program{source, "", ""}, 0;
}
API nvrtcDestroyProgram(void **program) { return delete static_cast<Program *>(*program), *program = nullptr, 0; }
API nvrtcCompileProgram(void *program, int, const char *const *) { return compile(*static_cast<Program *>(program)); }
API nvrtcGetPTXSize(void *program, size_t *out) { return *out = static_cast<Program *>(program)->ptx.size() + 1, 0; }
API nvrtcGetPTX(void *program, char *out) { return strcpy(out, static_cast<Program *>(program)->ptx.c_str()), 0; }
API nvrtcGetProgramLogSize(void *program, size_t *out) {
    return *out = static_cast<Program *>(program)->log.size() + 1, 0;
}
API nvrtcGetProgramLog(void *program, char *out) {
    return strcpy(out, static_cast<Program *>(program)->log.c_str()), 0;
}
extern "C" __attribute__((visibility("default"))) const char *nvrtcGetErrorString(int code) {
    return code == 0 ? "NVRTC_SUCCESS" : "NVRTC_ERROR_COMPILATION";
}
