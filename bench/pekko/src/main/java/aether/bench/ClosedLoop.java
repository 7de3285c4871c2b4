package aether.bench;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.CountDownLatch;
import org.apache.pekko.actor.typed.ActorRef;

/** Clients that each send their next command when the last one was answered, to the accounts in turn. */
final class ClosedLoop {
  private final Accounts accounts;
  private final List<ActorRef<Account.Command>> live = new ArrayList<>();

  ClosedLoop(Accounts accounts) {
    this.accounts = accounts;
  }

  /** Runs the loop and returns its result as JSON. */
  String run(int clients, int actors, double seconds) throws Exception {
    while (live.size() < actors) {
      live.add(accounts.spawn("a" + live.size()));
    }
    CountDownLatch done = new CountDownLatch(clients);
    long began = System.nanoTime();
    long end = began + (long) (seconds * 1e9);
    List<Client> all = new ArrayList<>();
    for (int number = 0; number < clients; number++) {
      all.add(new Client(number, clients, actors, end, done));
    }
    all.forEach(Client::next);
    done.await();
    double took = (System.nanoTime() - began) / 1e9;
    long[] times = all.stream().flatMapToLong(client -> Arrays.stream(client.times, 0, client.count)).sorted().toArray();
    return String.format(
        Locale.ROOT,
        "{\"rate\":%f,\"replies\":%d,\"p50_ms\":%f,\"p99_ms\":%f,\"cpu_us\":0}",
        times.length / took, times.length, times[times.length / 2] / 1e6, times[(int) (times.length * 0.99)] / 1e6);
  }

  private final class Client {
    private final int clients;
    private final int actors;
    private final long end;
    private final CountDownLatch done;
    private int turn;
    private long[] times = new long[1024];
    private int count;

    Client(int number, int clients, int actors, long end, CountDownLatch done) {
      this.turn = number;
      this.clients = clients;
      this.actors = actors;
      this.end = end;
      this.done = done;
    }

    void next() {
      long sent = System.nanoTime();
      if (sent > end) {
        done.countDown();
        return;
      }
      ActorRef<Account.Command> account = live.get(turn % actors);
      turn += clients;
      accounts.deposit(account, 1, "c-00000000").whenComplete((balance, error) -> {
        if (error != null) {
          System.err.println(error);
          System.exit(1);
        }
        note(System.nanoTime() - sent);
        next();
      });
    }

    private void note(long nanos) {
      if (count == times.length) {
        times = Arrays.copyOf(times, 2 * count);
      }
      times[count++] = nanos;
    }
  }
}
