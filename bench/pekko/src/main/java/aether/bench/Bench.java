package aether.bench;

import java.io.BufferedReader;
import java.io.InputStreamReader;

/**
 * The peer as a process that is asked to do one thing after another, so that it is measured in turns with others while its JIT stays warm.
 *
 * <p>Arguments: JOURNAL PLACE. It prints {@code ready}, then answers each line of its input with one line:
 *
 * <pre>
 *   commands CLIENTS ACTORS SECONDS            the result of a closed loop
 *   fill PREFIX ACTORS COMMITS EVENTS          ok
 *   replay PREFIX ACTORS AT_ONCE BALANCE       the seconds it took
 * </pre>
 */
public final class Bench {
  private Bench() {}

  public static void main(String[] arguments) throws Exception {
    Accounts accounts = new Accounts(arguments[0], arguments[1]);
    ClosedLoop loop = new ClosedLoop(accounts);
    BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
    System.out.println("ready");
    String line;
    while ((line = input.readLine()) != null) {
      System.out.println(answer(accounts, loop, line.split(" ")));
    }
    System.exit(0);
  }

  private static String answer(Accounts accounts, ClosedLoop loop, String[] words) throws Exception {
    switch (words[0]) {
      case "commands":
        return loop.run(number(words[1]), number(words[2]), Double.parseDouble(words[3]));
      case "fill":
        accounts.fill(words[1], number(words[2]), number(words[3]), number(words[4]));
        return "ok";
      case "replay":
        return String.valueOf(accounts.replay(words[1], number(words[2]), number(words[3]), number(words[4])));
      default:
        throw new IllegalArgumentException("unknown: " + String.join(" ", words));
    }
  }

  private static int number(String text) {
    return Integer.parseInt(text);
  }
}
