#!/usr/bin/env python
"""Type inputs and read the answers of a trained model, for any of its tasks.

  in a terminal, one CPU or one GPU (the GPU is used if there is one):
    python interact.py --model_checkpoint runs/VLM
    python interact.py --model_checkpoint runs/VLM --task mt --no_sample
  in a pipe: only answers on stdout, everything else on stderr
    echo "A man is reading." | python interact.py --model_checkpoint runs/VLM --task mt --no_sample

--model_checkpoint takes the output of train.py, train_vlm.py, train_t5.py, train_camtl.py or combine_all.py, or a
checkpoint released with the original VLM code. For a T5 of train_t5.py, word inputs as in training
("sentence1: … sentence2: …"); a BERT of train_camtl.py takes one sentence, or two separated by |||, and answers with
the class and its probability. /help lists the commands. In a conversation, answers are added to the history, which each
task keeps separately. In a pipe, every input gives one line of output: line breaks are written as \\n, and an input
that cannot be answered gives an empty line. Commands, and lines that set a persona or a document, give no output.
"""

import contextlib
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

from versatile.data.listing import list_tasks
from versatile.utils import flags, settings
from versatile.utils.errors import UserError, exit_on_user_error


def parser():
    p = flags.build_parser(__doc__)
    g = p.group("model")
    settings.add(p, "model_checkpoint", group="model", help="the directory of a trained model")
    g.add_argument("--task", help="the task to start with (default: the model's first)")
    settings.add(p, "max_history", group="model", help=settings.HISTORY)
    list_tasks(g)
    settings.add_decoding(p)
    return p


@exit_on_user_error
def main(argv=None):
    p = parser()
    args = p.parse_args(argv)
    if not args.model_checkpoint:
        p.error("--model_checkpoint is needed")
    flags.check_lengths(p, args)
    flags.require_one_process()
    out, typed = sys.stdout, sys.stdin.isatty()
    # If a program reads the answers, stdout holds nothing else: all other output goes to stderr.
    with contextlib.redirect_stdout(out if typed and out.isatty() else sys.stderr):
        session = ChatSession(args)
        session.text_model.refuse_unused(p.locations)
        session.greet()
        if typed:
            in_terminal(session, out)
        else:
            in_pipe(session, sys.stdin.buffer, out)


def in_terminal(session, out):
    """Prompt, read and answer until Ctrl-D or /quit. Ctrl-C stops the current answer, or discards the line."""
    with contextlib.suppress(ImportError):
        # Importing it gives `input` a history and line editing.
        import readline  # noqa: F401
    while not session.over and out.has_reader:
        answering = False
        try:
            line = input(f"{session.task.name}> ")
            answering = True
            answer = session.take(line)
        except KeyboardInterrupt:
            print("stopped" if answering else "")
        except EOFError:
            return print()
        except UnicodeDecodeError:
            print("the line is not UTF-8")
        except UserError as error:
            print(friendly(error))
        else:
            if answer == "" and out.isatty():
                print("(the answer is empty)")
            elif answer is not None:
                out.write_data(answer)


def in_pipe(session, lines, out):
    """Answer lines of bytes until the end; every input gives one line of output."""
    from versatile.utils.lines import one_line

    for number, raw in enumerate(lines, 1):
        answer = ""
        try:
            answer = session.take(raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n"))
        except UnicodeDecodeError:
            print(f"line {number}: not UTF-8", flush=True)
        except UserError as error:
            print(f"line {number}: {friendly(error)}", flush=True)
        if answer is not None:
            out.write_data(one_line(answer))
        if session.over or not out.has_reader:
            # /quit, or the reader of the answers has closed the pipe.
            return


def friendly(error):
    """A `UserError` as one line."""
    parts = [error.found, f"expected: {error.expected}" if error.expected else "", error.remedy or ""]
    return "; ".join(part for part in parts if part)


class ChatSession:
    """A loaded model, the current task and the conversations so far.

    Attributes:
        task: the current `data.task.Task`.
        over: /quit was typed.
    """

    def __init__(self, args):
        import ignite.distributed as idist
        from versatile.data.task import get_task
        from versatile.training.decoding import Decoding
        from versatile.training.text_model import load_text_model
        from versatile.utils import devices

        devices.quiet_libraries(args.cache_dir)
        dtype = devices.precision(args, idist.device())
        self.text_model = load_text_model(args.model_checkpoint, args.task, dtype)
        self.tasks, self.max_history = self.text_model.tasks, args.max_history
        first = next(iter(self.tasks.values()), None)
        self.task = self.tasks.get(args.task) or first or get_task(self.text_model.names[0])
        self.decoding = Decoding.from_flags(args, self.text_model.positions)
        self.sessions = {name: self.session(name) for name in self.tasks}
        # The last prompt and what was cut from it; cuts already reported; number of answers so far.
        self.shown, self.reported_cuts, self.count, self.over = None, set(), 0, False

    def session(self, name):
        """A task's initial session."""
        return self.text_model.session(name, self.max_history)

    def greet(self):
        loaded = self.text_model
        print(f"{loaded.directory}: backbone {loaded.backbone}; {loaded.summary}\ntasks: {', '.join(self.tasks)}")
        self.introduce()
        print("/help lists the commands, Ctrl-D ends", flush=True)

    def introduce(self):
        print(f"{self.task.name}: {self.task.summary}; for example: {self.task.sample}", flush=True)

    # ---- inputs

    def take(self, line):
        """Run a line's command, or answer its input.

        Returns:
            the answer, or None if the line asked for none.

        Raises:
            UserError: the line cannot be an input of the current task.
        """
        if re.fullmatch(r"/[a-z]+(\s.*)?", line.rstrip()):
            return self.command(line.split())
        if not line.strip():
            raise UserError(f"type an input, such as: {self.task.sample}", remedy="/help lists the commands")
        return self.answer(line.strip())

    def answer(self, text):
        """The model's answer to an input, or None if the input only set something."""
        name = self.task.name
        example, session = self.task.typed(text, self.sessions[name])
        if example is None:
            self.sessions[name] = session
            return print("noted: the next line begins the conversation", flush=True)
        prompt = self.prompt(example, session)
        # Nothing is recorded before the answer is complete: Ctrl-C leaves the conversation as it was.
        answer = self.decode(prompt)
        self.sessions[name] = self.task.answered(answer, session)
        return answer

    def prompt(self, example, session):
        """The model's prompt; prints a note, once per reason, if it does not contain all that was typed."""
        name = self.task.name
        prompts, cut = self.text_model.prompts(name, [example], self.decoding.max_length)
        notices = [f"the input is cut, as in training: {why}" for why in cut]
        turns = sum(span.turn for span in example.context)
        if len(session.get("history", [])) > turns:
            notices.insert(0, f"only the last {turns} turns of the conversation are given, as in training")
        for notice in notices:
            if (name, notice) not in self.reported_cuts:
                print(f"note: {notice} (/show shows what is left)", flush=True)
                self.reported_cuts.add((name, notice))
        self.shown = prompts[0], notices
        return prompts[0]

    def decode(self, prompt):
        # Each answer has its own seed, so that repeating an input may give another answer.
        decoding = replace(self.decoding, seed=self.decoding.seed + self.count)
        self.count += 1
        return self.text_model.decode([prompt], decoding)[0]

    # ---- commands

    def command(self, words):
        """Run a command, printing its errors."""
        name, *rest = words
        try:
            if name not in COMMANDS:
                raise UserError(f"there is no command {name}", remedy="/help lists them")
            COMMANDS[name][0](self, *rest[:2])
        except UserError as error:
            print(friendly(error))
        sys.stdout.flush()

    def choose(self, name=None, *rest):
        if name is not None and name not in self.tasks:
            raise UserError(f"the model holds no task {name!r}", expected="one of " + ", ".join(self.tasks))
        self.task = self.tasks[name or self.task.name]
        self.introduce()

    def list(self, *rest):
        for name, task in self.tasks.items():
            print(f"{'*' if task is self.task else ' '} {name:15} {task.summary}\n{'':17} {task.sample}")

    def forget(self, *rest):
        self.sessions[self.task.name] = self.session(self.task.name)
        print(f"{self.task.name}: nothing has been said so far")

    def show(self, *rest):
        if self.shown is None:
            raise UserError("no input has been given yet", remedy="type an input first")
        prompt, notices = self.shown
        is_decoded = "max_length" not in self.text_model.without_effect
        answer = f", then at most {self.decoding.max_length} of the answer" if is_decoded else ""
        print(f"{len(prompt.ids)} tokens{answer}:")
        print(self.text_model.prompt_text(prompt))
        for notice in notices:
            print(f"note: {notice}")

    def set(self, name=None, value=None):
        if name is None:
            hidden = {"batch_size", *self.text_model.without_effect}
            settings = [f"{name} {value}" for name, value in vars(self.decoding).items() if name not in hidden]
            return print(", ".join(settings) or "there is nothing to set")
        name = name.lstrip("-").replace("-", "_")
        if why := self.text_model.without_effect.get(name):
            raise UserError(f"{name} has no effect on this model: {why}")
        self.decoding = changed(self.decoding, name, value, self.text_model.positions)
        if name == "seed":
            self.count = 0
        unused = self.decoding.no_sample and name in (*flags.SAMPLING, "seed")
        print(f"{name} {getattr(self.decoding, name)}" + ("; without effect until /set no_sample off" * unused))

    def help(self, *rest):
        for name, (_, usage, what) in COMMANDS.items():
            print(f"{f'{name} {usage}':20} {what}")
        print("Everything else is an input; put a space in front of one that looks like a command.")

    def quit(self, *rest):
        self.over = True


COMMANDS = {
    "/task": (ChatSession.choose, "NAME", "answer for another task; each keeps its own conversation"),
    "/tasks": (ChatSession.list, "", "the tasks, each with a sample input"),
    "/new": (ChatSession.forget, "", "forget the conversation"),
    "/show": (ChatSession.show, "", "the last prompt given to the model, token by token"),
    "/set": (ChatSession.set, "NAME VALUE", "a decoding setting, e.g. /set max_length 60; alone: all of them"),
    "/help": (ChatSession.help, "", "this list"),
    "/quit": (ChatSession.quit, "", "end (so does Ctrl-D); Ctrl-C stops the current answer"),
}


def changed(decoding, name, value, positions):
    """`Decoding` with one setting changed as its flag would change it.

    Raises:
        UserError: there is no such setting, or its flag would not accept the value.
    """
    names = [n for n in vars(decoding) if n != "batch_size"]
    if name not in names:
        raise UserError(f"no setting {name!r}", expected="one of " + ", ".join(names))
    if name == "no_sample":
        switch = {"on": True, "true": True, "off": False, "false": False}
        if value is not None and value.lower() not in switch:
            raise UserError(f"no_sample {value!r}", expected="on or off")
        return replace(decoding, no_sample=switch[(value or "on").lower()])
    if value is None:
        raise UserError(f"{name} needs a value", expected=f"/set {name} {getattr(decoding, name)}, say")
    p = flags.build_parser("")
    p.error = refuse
    settings.add_decoding(p)
    wanted = vars(decoding) | {name: getattr(p.parse_args([f"--{name}={value}"]), name)}
    flags.check_lengths(p, SimpleNamespace(**wanted))
    from versatile.training.decoding import Decoding

    return Decoding.from_flags(SimpleNamespace(**wanted), positions)


def refuse(message):
    """The error handler of a parser whose errors must not end the program."""
    raise UserError(message.removeprefix("argument "))


if __name__ == "__main__":
    sys.exit(main())
