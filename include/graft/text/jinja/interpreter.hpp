// SPDX-License-Identifier: Apache-2.0
// Runs a template's syntax tree. A hostile template ends in a FormatError: steps, depth and sizes are bounded.
#pragma once

#include <graft/core/error.hpp>
#include <graft/text/jinja/filters.hpp>
#include <graft/text/jinja/operators.hpp>
#include <graft/text/jinja/syntax.hpp>
#include <graft/text/jinja/text_functions.hpp>
#include <graft/text/jinja/value.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace graft::jinja {

class Interpreter {
 public:
  /// `now` is what strftime_now tells, in local time.
  Interpreter(Dict globals, std::time_t now) : now_(now) {
    for (char const* name : {"namespace", "range", "dict", "raise_exception", "strftime_now"})
      globals.set(name, Value::Variant(Function{name}));
    scopes_.push_back(std::move(globals));
  }

  std::string run(Block const& block) {
    std::string out;
    execute(block, out);
    return out;
  }

 private:
  using Kind = Expression::Kind;
  enum class Flow { onwards, leave, skip };

  struct Scope {
    explicit Scope(Interpreter& interpreter) : scopes_(interpreter.scopes_), size_(scopes_.size()) {
      scopes_.emplace_back();
    }
    ~Scope() {
      if (scopes_.size() > size_) scopes_.resize(size_);  // fewer when an error leaves a macro
    }
    std::vector<Dict>& scopes_;
    std::size_t size_;
  };

  /// One statement or expression; they nest.
  struct Step {
    Step(Interpreter& interpreter, int line) : depth_(interpreter.depth_) {
      if (++interpreter.steps_ > 5000000) refuse(line, "takes more than five million steps");
      if (++depth_ > 400) refuse(line, "nests too deep");
    }
    ~Step() { --depth_; }
    int& depth_;
  };

  Flow execute(Block const& block, std::string& out) {
    for (Statement const& statement : block) {
      Flow const flow = execute(statement, out);
      if (flow != Flow::onwards) return flow;
    }
    return Flow::onwards;
  }

  Flow execute(Statement const& statement, std::string& out) {
    Step const step(*this, statement.line);
    switch (statement.kind) {
      case Statement::Kind::text:
        append(out, statement.text);
        break;
      case Statement::Kind::output:
        append(out, to_text(evaluate(*statement.expression)));
        break;
      case Statement::Kind::assign:
        assign(statement.targets, assigned(statement), statement.line);
        break;
      case Statement::Kind::assign_to: {
        Value const target = look_up(statement.targets[0]);
        auto const* const space = target.get<Namespace>();
        if (space == nullptr) refuse(statement.line, in_quotes(statement.targets[0]), " is not a namespace");
        Value value = evaluate(*statement.expression);
        if (value.get<Namespace>()) refuse(statement.line, "a namespace in a namespace is not supported");
        space->members->set(statement.targets[1], std::move(value));
        break;
      }
      case Statement::Kind::branch:
        return execute(evaluate(*statement.expression).truth() ? statement.body : statement.otherwise, out);
      case Statement::Kind::loop:
        return loop(statement, out);
      case Statement::Kind::macro:
        scopes_.back().set(statement.text, Value::Variant(Function{statement.text, &statement, scopes_.size()}));
        break;
      case Statement::Kind::leave:
        return Flow::leave;
      case Statement::Kind::skip:
        return Flow::skip;
    }
    return Flow::onwards;
  }

  Value assigned(Statement const& statement) {
    if (statement.expression) return evaluate(*statement.expression);
    Scope const scope(*this);
    std::string out;
    execute(statement.body, out);
    return out;
  }
  void assign(std::vector<std::string> const& targets, Value const& value, int line) {
    if (targets.size() == 1) return scopes_.back().set(targets[0], value);
    List const parts = elements(line, value);
    if (parts.size() != targets.size()) refuse(line, "cannot take ", parts.size(), " values as ", targets.size());
    for (std::size_t k = 0; k < parts.size(); ++k) scopes_.back().set(targets[k], parts[k]);
  }

  Flow loop(Statement const& statement, std::string& out) {
    List all = elements(statement.line, evaluate(*statement.expression));
    if (statement.condition) {
      List kept;
      for (Value const& element : all) {
        Scope const scope(*this);
        assign(statement.targets, element, statement.line);
        if (evaluate(*statement.condition).truth()) kept.push_back(element);
      }
      all = std::move(kept);
    }
    if (all.empty()) return execute(statement.otherwise, out);
    for (std::size_t k = 0; k < all.size(); ++k) {
      Step const step(*this, statement.line);
      Scope const scope(*this);
      assign(statement.targets, all[k], statement.line);
      scopes_.back().set("loop", loop_facts(all, k));
      if (execute(statement.body, out) == Flow::leave) break;
    }
    return Flow::onwards;
  }
  static Value loop_facts(List const& all, std::size_t k) {
    auto const at = static_cast<std::int64_t>(k), size = static_cast<std::int64_t>(all.size());
    Dict loop;
    loop.entries = {{"index", at + 1},  {"index0", at},           {"revindex", size - at}, {"revindex0", size - at - 1},
                    {"first", at == 0}, {"last", at == size - 1}, {"length", size}};
    if (k > 0) loop.entries.emplace_back("previtem", all[k - 1]);
    if (k + 1 < all.size()) loop.entries.emplace_back("nextitem", all[k + 1]);
    return loop;
  }

  Value look_up(std::string const& name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
      if (Value const* const found = scope->find(name)) return *found;
    return Value::Variant(Undefined{name});
  }

  /// What an operation makes costs steps by its size: memory is bounded as time is.
  Value evaluate(Expression const& e) {
    Step const step(*this, e.line);
    Value out = result(e);
    if (e.kind != Kind::name && e.kind != Kind::attribute && e.kind != Kind::item && e.kind != Kind::literal) {
      if (auto const* const made = out.get<std::string>()) steps_ += static_cast<std::int64_t>(made->size() / 16);
      if (List const* const made = out.list()) steps_ += static_cast<std::int64_t>(made->size());
    }
    return out;
  }

  Value result(Expression const& e) {
    auto const child = [&](std::size_t k) { return evaluate(*e.children[k]); };
    switch (e.kind) {
      case Kind::literal:
        return e.value;
      case Kind::name:
        return look_up(e.text);
      case Kind::list:
      case Kind::tuple: {
        List out;
        for (auto const& element : e.children) out.push_back(evaluate(*element));
        return e.kind == Kind::tuple ? Value::tuple(std::move(out)) : Value(std::move(out));
      }
      case Kind::dict: {
        Dict out;
        for (std::size_t k = 0; k < e.children.size(); k += 2) {
          Value const key = child(k);
          if (!key.get<std::string>())
            refuse(e.line, "the key of a mapping is ", key.kind(), ", only strings are supported");
          out.set(*key.get<std::string>(), child(k + 1));
        }
        return out;
      }
      case Kind::attribute:
        return item(e.line, child(0), e.text);
      case Kind::item: {
        Value const container = child(0);
        return item(e.line, container, child(1));
      }
      case Kind::slice:
        return slice(e);
      case Kind::call:
        return call(e);
      case Kind::filter: {
        Value const subject = child(0);
        return filtered(e.text, subject, arguments(e));
      }
      case Kind::test: {
        Value const subject = child(0);
        return passes(e.text, subject, arguments(e));
      }
      case Kind::unary: {
        Value const value = child(0);
        if (e.text == "not") return !value.truth();
        if (!value.is_number()) refuse(e.line, "\"", e.text, "\" does not take ", value.kind());
        return binary(e.line, e.text, std::int64_t{0}, value);
      }
      case Kind::binary: {
        Value const left = child(0);
        if (e.text == "and") return left.truth() ? child(1) : left;
        if (e.text == "or") return left.truth() ? left : child(1);
        return binary(e.line, e.text, left, child(1));
      }
      case Kind::condition: {
        if (child(0).truth()) return child(1);
        return e.children[2] ? child(2) : Value();
      }
    }
    return {};
  }

  Arguments arguments(Expression const& e) {
    Arguments out{e.line};
    for (std::size_t k = 1; k < e.children.size(); ++k) out.positional.push_back(evaluate(*e.children[k]));
    for (auto const& [name, value] : e.named) out.named.set(name, evaluate(*value));
    return out;
  }

  Value slice(Expression const& e) {
    Value const container = evaluate(*e.children[0]);
    auto const bound = [&](std::size_t k) -> std::optional<std::int64_t> {
      if (!e.children[k]) return std::nullopt;
      Value const value = evaluate(*e.children[k]);
      if (value.is_none()) return std::nullopt;
      if (!value.get<std::int64_t>()) refuse(e.line, "a slice is bounded by ", value.kind());
      return value.integer_or(0);
    };
    if (!container.list() && !container.get<std::string>()) return item(e.line, container, Value());
    auto const start = bound(1), stop = bound(2), stride = bound(3);
    if (stride == 0) refuse(e.line, "a slice has step 0");
    List const all = elements(e.line, container);
    List out;
    for (std::size_t const k : slice_indices(all.size(), start, stop, stride.value_or(1))) out.push_back(all[k]);
    return container.list() ? Value(out) : filtered("join", out, {e.line});
  }

  Value call(Expression const& e) {
    Expression const& callee = *e.children[0];
    if (callee.kind == Kind::attribute) {
      Value const object = evaluate(*callee.children[0]);
      return method(object, callee.text, arguments(e));
    }
    Value const function = evaluate(callee);
    if (!function.get<Function>())
      refuse(e.line, callee.text.empty() ? "an expression" : in_quotes(callee.text), " is called but is ",
             function.kind());
    Function const& known = *function.get<Function>();
    return known.macro ? call(*known.macro, known.scopes, arguments(e)) : call(known.name, arguments(e));
  }

  /// A macro sees its arguments and the scopes around its definition, not those around the call.
  Value call(Statement const& macro, std::size_t seen, Arguments const& given) {
    if (given.positional.size() > macro.targets.size())
      refuse(given.line, "macro ", in_quotes(macro.text), " takes ", macro.targets.size(), " arguments");
    for (auto const& [name, value] : given.named.entries)
      if (std::find(macro.targets.begin(), macro.targets.end(), name) == macro.targets.end())
        refuse(given.line, "macro ", in_quotes(macro.text), " has no parameter ", in_quotes(name));
    auto const first_hidden = scopes_.begin() + static_cast<std::ptrdiff_t>(std::min(seen, scopes_.size()));
    std::vector<Dict> hidden(std::make_move_iterator(first_hidden), std::make_move_iterator(scopes_.end()));
    scopes_.erase(first_hidden, scopes_.end());
    std::size_t const kept = scopes_.size();
    scopes_.emplace_back();
    for (std::size_t k = 0; k < macro.targets.size(); ++k) {
      Value value = given.get(k, macro.targets[k]);
      if (!value.is_defined() && macro.defaults[k]) value = evaluate(*macro.defaults[k]);
      scopes_.back().set(macro.targets[k], std::move(value));
    }
    std::string out;
    execute(macro.body, out);
    scopes_.resize(kept);
    std::move(hidden.begin(), hidden.end(), std::back_inserter(scopes_));
    return out;
  }

  Value call(std::string const& name, Arguments const& given) {
    if (name == "namespace") {
      for (auto const& entry : given.named.entries)
        if (entry.second.get<Namespace>()) refuse(given.line, "a namespace in a namespace is not supported");
      return Value::Variant(Namespace{std::make_shared<Dict>(given.named)});
    }
    if (name == "dict") return given.named;
    if (name == "raise_exception") raise<ContractError>("chat template: ", to_text(given.get(0, "message")));
    if (name == "strftime_now") {
      std::tm local{};
      localtime_r(&now_, &local);
      char buffer[256] = {};
      std::size_t const length =
          std::strftime(buffer, sizeof buffer, given.text(0, "format").value_or("").c_str(), &local);
      return std::string(buffer, length);
    }
    bool const has_start = given.positional.size() > 1;  // range
    std::int64_t const start = has_start ? given.integer(0, "", 0) : 0, stop = given.integer(has_start ? 1 : 0, "", 0);
    std::int64_t const stride = given.integer(2, "", 1);
    if (stride == 0) refuse(given.line, "range has step 0");
    List out;
    for (std::int64_t k = start; stride > 0 ? k < stop : k > stop;) {
      if (out.size() == longest_list) refuse(given.line, "range has more than ", longest_list, " elements");
      out.push_back(k);
      if (__builtin_add_overflow(k, stride, &k)) break;
    }
    return out;
  }

  Value method(Value const& object, std::string const& name, Arguments const& given) const {
    if (auto const* const text = object.get<std::string>()) return string_method(*text, name, given);
    if (auto const* const undefined = object.get<Undefined>())
      refuse(given.line, in_quotes(undefined->name), " is undefined and has no method ", in_quotes(name));
    if (Dict const* const dict = object.dict()) {
      if (name == "items") return filtered("items", object, given);
      if (name == "keys") return elements(given.line, object);
      if (name == "values") {
        List out;
        for (auto const& entry : dict->entries) out.push_back(entry.second);
        return out;
      }
      if (name == "get") {
        Value const* const found = dict->find(given.text(0, "").value_or(""));
        Value const fallback = given.get(1, "default");
        return found ? *found : fallback.is_defined() ? fallback : Value(Value::Variant(None{}));
      }
    }
    refuse(given.line, "the method ", in_quotes(name), " of ", object.kind(), " is not supported");
  }

  static Value string_method(std::string const& subject, std::string const& name, Arguments const& given) {
    if (name == "strip" || name == "lstrip" || name == "rstrip")
      return stripped(subject, given.text(0, "chars"), name != "rstrip", name != "lstrip");
    if (name == "startswith" || name == "endswith") {
      Value const wanted = given.get(0, "");
      auto const fits = [&](Value const& part) {
        if (!part.get<std::string>()) refuse(given.line, in_quotes(name), " expects a string, found ", part.kind());
        return name == "startswith" ? subject.starts_with(*part.get<std::string>())
                                    : subject.ends_with(*part.get<std::string>());
      };
      if (!wanted.list()) return fits(wanted);
      for (Value const& one : *wanted.list())
        if (fits(one)) return true;
      return false;
    }
    if (name == "split") {
      auto const separator = given.text(0, "sep");
      if (separator && separator->empty()) refuse(given.line, "split at an empty string");
      List out;
      for (std::string& part : split(subject, separator, given.integer(1, "maxsplit", -1)))
        out.push_back(std::move(part));
      return out;
    }
    if (name == "join") return filtered("join", given.get(0, ""), {given.line, {subject}});
    for (char const* same : {"replace", "lower", "upper", "capitalize", "title"})
      if (name == same) return filtered(name, subject, given);
    refuse(given.line, "the method ", in_quotes(name), " of a string is not supported");
  }

  std::time_t now_;
  std::vector<Dict> scopes_;  // the template's own first
  std::int64_t steps_ = 0;
  int depth_ = 0;
};

}  // namespace graft::jinja
